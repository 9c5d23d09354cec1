"""What the kernels become on GPUs of six families, compiled without one."""
