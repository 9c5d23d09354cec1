"""Scaled dot-product attention: softmax(q k^T / sqrt(E) + mask) v, computed per head.

q [B, A, N, E], k and v [B, A, L, E]; the mask is added to the scores, -inf hides a key, and every row must keep at
least one finite key. The output has the dtype of q.
"""
