"""What a recipe can say about pictures to import: the kind `collection` and its components (2.2.1)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.errors import needs

if TYPE_CHECKING:
    from kolors_zarr.collections.folder import ImageFolder
    from kolors_zarr.collections.hugging_face import HuggingFaceSet
    from kolors_zarr.collections.inputs import Collection, Fields
    from kolors_zarr.collections.listing import Listing
    from kolors_zarr.collections.parquet import ParquetFiles
    from kolors_zarr.collections.webdataset import Tars

CaptionKey = Literal["zh_original", "en_original", "zh_synthetic", "en_synthetic"]


class CollectionConfig(ComponentConfig, kind="collection"):
    """Pictures with what is known of them, as people keep them (2.2.1)."""

    captions: dict[CaptionKey, str]
    """Where the captions are: the name of what holds each, by caption key. No language is guessed."""
    tags: dict[str, str] = Field(default={})
    """The tags of the samples (category, level, source, licence ...), each with the name of what holds it."""
    constant_tags: dict[str, str] = Field(default={})
    """Tags that are the same for all samples, with their values."""

    @model_validator(mode="after")
    def _tags_are_said_once(self) -> Self:
        twice = sorted(self.tags.keys() & self.constant_tags.keys())
        if twice:
            raise ValueError(f"tags and constant_tags both give '{twice[0]}'; leave one out")
        return self

    @abstractmethod
    def build(self, ctx: BuildContext) -> Collection:
        """Make what reads the collection; this is where its libraries are imported, and no sooner."""

    def fields(self) -> Fields:
        """Return the names of captions and tags as the object behind this takes them."""
        from kolors_zarr.collections.inputs import Fields

        return Fields({str(key): name for key, name in self.captions.items()}, self.tags, self.constant_tags)


class FileCollectionConfig(CollectionConfig):
    """What image folders and tars share: texts in files of their own."""

    captions: dict[CaptionKey, str] = Field(default={"en_original": ".txt"})
    """Where the captions are, by caption key: the ending of the file beside the picture (`.txt`, `.zh.txt`), or else
    a key of its .json file. No language is guessed."""
    tags: dict[str, str] = Field(default={})
    """The tags of the samples (category, level, source, licence ...), each with an ending or a key as for captions."""


class ImageFolderConfig(FileCollectionConfig):
    """The pictures of a folder and of the folders in it, with their texts in files of the same name beside them."""

    type: Literal["image_folder"] = "image_folder"
    path: ExistingPath
    """The folder. A sample's id is its picture's path below it."""

    @classmethod
    def tiny(cls) -> Self:
        """Return three small pictures in a temporary folder removed when the process ends."""
        from kolors_zarr.collections.tiny import tiny_folder

        return cls(path=tiny_folder())

    def build(self, ctx: BuildContext) -> ImageFolder:
        """Make what reads the folder; nothing is listed yet."""
        from kolors_zarr.collections.folder import ImageFolder

        return ImageFolder(self.path, self.fields())


class WebDatasetConfig(FileCollectionConfig):
    """Tars in the layout of WebDataset: files of one name up to its first dot are one sample. Nothing is unpacked."""

    type: Literal["webdataset"] = "webdataset"
    path: ExistingPath
    """A tar, or a folder with tars. A sample's id is the tar and the name in it."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a tar of three small pictures in a temporary folder removed when the process ends."""
        from kolors_zarr.collections.tiny import tiny_tar

        return cls(path=tiny_tar())

    def build(self, ctx: BuildContext) -> Tars:
        """Make what reads the tars. Raises DataError where there is none."""
        from kolors_zarr.collections.webdataset import Tars

        return Tars(self.path, self.fields())


class TableCollectionConfig(CollectionConfig):
    """What tables share: a row per sample."""

    captions: dict[CaptionKey, str] = Field(default={"en_original": "caption"})
    """Where the captions are: a column, or a key of JSON lines, for each caption key. No language is guessed."""
    tags: dict[str, str] = Field(default={})
    """The tags of the samples (category, level, source, licence ...), each with the column or key that holds it."""
    image: str = "image"
    """The column of the picture: its bytes, a struct of bytes and path as Hugging Face writes it, or its path."""
    id: str = ""
    """The column of the sample's id. Empty: the id is the file, or the split, and the number of the row."""


class ParquetConfig(TableCollectionConfig):
    """The rows of parquet files, among them the files of Hugging Face sets."""

    type: Literal["parquet"] = "parquet"
    path: ExistingPath
    """A parquet file, or a folder with such files; paths of pictures start there."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a file of three small pictures in a temporary folder removed when the process ends."""
        from kolors_zarr.collections.tiny import tiny_parquet

        return cls(path=tiny_parquet())

    def build(self, ctx: BuildContext) -> ParquetFiles:
        """Make what reads the files. Raises DataError where there is none."""
        with needs("pyarrow", extra="parquet", wanted_by=self.type):
            from kolors_zarr.collections.parquet import ParquetFiles

        return ParquetFiles(self.path, self.fields(), image=self.image, identity=self.id)


class HuggingFaceConfig(TableCollectionConfig):
    """One split of a set of the library `datasets`: from the Hub, or saved to a folder."""

    type: Literal["hugging_face"] = "hugging_face"
    path: ExistingPath | None = None
    """The folder that `save_to_disk` made."""
    name: str = ""
    """The set's name on the Hub, which is downloaded first; this or `path`."""
    split: str = "train"
    """The split, where the set has several."""

    @model_validator(mode="after")
    def _is_one_set(self) -> Self:
        if (self.path is None) == (not self.name):
            raise ValueError("give either the path of a saved set or its name on the Hub")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a saved set of three small pictures in a temporary folder removed when the process ends."""
        with needs("datasets", extra="huggingface", wanted_by="hugging_face"):
            from kolors_zarr.collections.tiny import tiny_hugging_face

        return cls(path=tiny_hugging_face())

    def build(self, ctx: BuildContext) -> HuggingFaceSet:
        """Make what reads the set; nothing is loaded yet."""
        with needs("datasets", extra="huggingface", wanted_by=self.type):
            from kolors_zarr.collections.hugging_face import HuggingFaceSet

        return HuggingFaceSet(self.path or self.name, self.split, self.fields(), image=self.image, identity=self.id)


class ListingConfig(TableCollectionConfig):
    """The rows of a CSV, TSV or JSON-lines file that names picture files in its folder."""

    type: Literal["listing"] = "listing"
    path: ExistingPath
    """The file, in UTF-8, ending in .csv, .tsv, .jsonl or .ndjson. A path in it that leads out of its folder is
    refused."""
    image: str = "path"
    """The column or key of the picture's path, which starts at the listing's folder."""
    id: str = ""
    """The column or key of the sample's id. Empty: the id is the picture's path."""

    @field_validator("path")
    @classmethod
    def _is_a_listing(cls, path: ExistingPath) -> ExistingPath:
        if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".ndjson"):
            raise ValueError(f"{path} must end in .csv, .tsv, .jsonl or .ndjson, which says how it is read")
        return path

    @classmethod
    def tiny(cls) -> Self:
        """Return a CSV of three small pictures in a temporary folder removed when the process ends."""
        from kolors_zarr.collections.tiny import tiny_listing

        return cls(path=tiny_listing())

    def build(self, ctx: BuildContext) -> Listing:
        """Make what reads the listing; nothing is listed yet."""
        from kolors_zarr.collections.listing import Listing

        return Listing(self.path, self.fields(), image=self.image, identity=self.id)


COMPONENTS = [ImageFolderConfig, WebDatasetConfig, ParquetConfig, HuggingFaceConfig, ListingConfig]
