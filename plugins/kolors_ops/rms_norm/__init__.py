"""RMS norm: x / sqrt(mean(x^2) + eps) * weight over the last dimension; x [..., D], weight [D]."""
