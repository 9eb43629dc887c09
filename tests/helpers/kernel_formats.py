"""Every element format, every scale and every rounding that the CUDA kernels are tested with."""

from mxsweep.numerics import ELEMENT_NAMES, ROUNDINGS, SCALE_ROUNDINGS, MXFormat, cuda_problem

GENERAL_ELEMENTS = ("fp3_e1m1", "fp8_e3m4", "fp6_e5m0", "fp12_e6m5", "fp16_e7m8", "int11")
MINTS = ("mint2", "mint4", "mint8")
# Every element format, every scale and both kinds of rounding, in all combinations that exist.
_ALL = [
    *(
        MXFormat(element, 32, "e8m0", scale_bits=bits, rounding=rounding, scale_rounding=scale_rounding)
        for element in (*dict.fromkeys((*ELEMENT_NAMES, *MINTS)), *GENERAL_ELEMENTS)
        for rounding in ROUNDINGS
        for scale_rounding, bits in zip(SCALE_ROUNDINGS, (8, 6, 4, 2), strict=True)
    ),
    *(
        MXFormat(element, 16, scale, rounding=rounding, tensor_scale=tensor_scale)
        for element in (*(name for name in ELEMENT_NAMES if name not in MINTS), *GENERAL_ELEMENTS)
        for rounding in ROUNDINGS
        for scale, tensor_scale in (("e5m3", False), ("e4m3", False), ("e4m3", True), ("fp32", False))
    ),
    *(
        MXFormat(element, 32, scale, rounding=rounding, symmetric=False)
        for element in ("fp4_e2m1", "int4", "fp8_e5m2")
        for rounding in ROUNDINGS
        for scale in ("e8m0", "e5m3", "fp32")
    ),
    *(
        MXFormat("fp4_e2m1", 16, scale, tensor_scale=tensor_scale, scale_floor=floor)
        for scale, tensor_scale, floor in (("e5m3", True, "auto"), ("e4m3", True, "normal"), ("fp32", False, "normal"))
    ),
    *(
        MXFormat(element, 32, scale_rounding=scale_rounding, scale_emax=False)
        for element in ("fp4_e2m1", "fp8_e4m3")
        for scale_rounding in ("floor", "even", "ceil")
    ),
    *(MXFormat("mint4", 32, rounding=rounding, symmetric=False) for rounding in ROUNDINGS),
]
FORMATS = [fmt for fmt in _ALL if cuda_problem(fmt) is None]
