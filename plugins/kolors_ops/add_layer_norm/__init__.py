"""Layer norm of x + added, or of x: (h - mean) / sqrt(var + eps) * weight + bias over the last dimension.

x and added [..., D], weight and bias [D]; the sum h and its norm are of the dtype of x.
"""
