"""What the paper reports: other priors, other images, a GPU, Inception and LPIPS. To compare shapes with, never values."""

from __future__ import annotations

Figures = dict[str, float]

# Whang, Lindgren and Dimakis, tables 1 and 2. "squared_error" is their MSE, which is a sum over the image; "seconds" per draw.
TABLES: dict[str, dict[str, Figures]] = {
    "mnist-bottom": {
        "svi": {"fid": 5.15, "squared_error": 22.13, "lpips": 0.076, "seconds": 13.6},
        "avi": {"fid": 8.25, "lpips": 0.249, "seconds": 0.025},
        "lmc": {"fid": 14.56, "squared_error": 36.47, "lpips": 0.135, "seconds": 3.21},
        "ambient": {"fid": 123.6, "squared_error": 59.99, "lpips": 0.282, "seconds": 9.85},
        "pl-mcmc": {"fid": 21.20, "squared_error": 59.89, "lpips": 0.190},
        "ivom": {"fid": 24.7, "lpips": 0.141, "seconds": 1.65},
    },
    "cifar10-subpixels": {
        "svi": {"fid": 45.01, "inception": 7.14, "squared_error": 9.73, "lpips": 0.177},
        "lmc": {"fid": 47.53, "inception": 6.73, "squared_error": 9.31, "lpips": 0.201},
        "ambient": {"fid": 87.50, "inception": 5.14, "squared_error": 16.59, "lpips": 0.295},
    },
    "faces-top": {
        "svi": {"fid": 37.24, "squared_error": 219.7, "lpips": 0.207, "diversity": 0.450, "seconds": 70.5},
        "avi": {"fid": 83.1, "lpips": 0.463, "seconds": 0.046},
        "lmc": {"fid": 30.34, "squared_error": 323.5, "lpips": 0.229, "diversity": 0.479, "seconds": 88.4},
        "ambient": {"fid": 295.0, "squared_error": 2084, "lpips": 0.738, "diversity": 0.586, "seconds": 67.9},
        "ivom": {"fid": 95.8, "lpips": 0.237, "seconds": 88.8},
    },
}
TITLES = {
    "mnist-bottom": "MNIST, bottom half observed",
    "mnist-top": "MNIST, top half observed",
    "mnist-subpixels": "MNIST, half of the pixels observed",
    "faces-top": "Faces (32x32, 5 bits), top half observed",
    "faces-subpixels": "Faces (32x32, 5 bits), half of the sub-pixels observed",
    "faces-colorize": "Faces (32x32, 5 bits), colorization",
    "faces-superres": "Faces (32x32, 5 bits), super-resolution 2x",
    "cifar10-subpixels": "CIFAR-10 (5 bits), half of the sub-pixels observed",
    "cifar10-top": "CIFAR-10 (5 bits), top half observed",
    "cifar10-colorize": "CIFAR-10 (5 bits), colorization",
    "cifar10-superres": "CIFAR-10 (5 bits), super-resolution 2x",
    "cifar10-cs-500": "CIFAR-10 (5 bits), 500 random projections",
}
