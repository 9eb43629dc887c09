"""Every element format, every scale, every rounding and every rule that the CUDA kernels are tested with."""

import torch

from mxsweep.formats.scale_rules import SCALE_RULE_NAMES
from mxsweep.numerics import ELEMENT_NAMES, ROUNDINGS, SCALE_ROUNDINGS, MXFormat

# Architectures that kernels are compiled for, with types of tensors: their source is another below sm_80 than above.
COMPILED_FOR = [
    *((arch, dtype) for arch in ("sm_75", "sm_100") for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    ("sm_80", torch.bfloat16),
    ("sm_90", torch.bfloat16),
]
GENERAL_ELEMENTS = ("fp3_e1m1", "fp8_e3m4", "fp6_e5m0", "fp12_e6m5", "fp16_e7m8", "int11")
MINTS = ("mint2", "mint4", "mint8")
# With a rule: rounding, floor, what becomes of Inf, whether there is a choice of two scales, whether it is symmetric.
_WITH_RULES = [
    ("even", "auto", "nan_block", False, True),
    ("nearest", "none", "saturate", False, True),
    ("ties_to_zero", "normal", "nan_block", True, True),
    ("stochastic", "none", "nan_block", True, True),
    ("floor", "subnormal", "saturate", True, False),
]
# Every element format, every scale and every kind of rounding, in all combinations that exist.
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
    *(
        MXFormat(
            element,
            16,
            scale,
            rounding=rounding,
            symmetric=symmetric,
            tensor_scale=tensor_scale,
            scale_rule=rule,
            scale_floor=floor,
            inf=inf,
            four_over_six=four_over_six,
        )
        for rule in SCALE_RULE_NAMES
        for element, scale, tensor_scale in (
            ("fp4_e2m1", "e4m3", True),
            ("fp4_e2m1", "e4m3", False),
            ("fp4_e2m1", "fp32", False),
            ("fp8_e4m3", "e5m3", True),
            ("int4", "e4m3", True),
        )
        for rounding, floor, inf, four_over_six, symmetric in _WITH_RULES
    ),
    *(
        MXFormat(element, 16, "e4m3", tensor_scale=tensor_scale, four_over_six=True)
        for element in ("fp4_e2m1", "fp6_e2m3", "int8", "fp16_e7m8")
        for tensor_scale in (True, False)
    ),
    *(
        MXFormat(element, 32, scale_rounding=f"even{bits}", inf=inf)
        for element in ("fp4_e2m1", "fp8_e4m3", "int4")
        for bits, inf in ((0, "nan_block"), (7, "saturate"), (22, "nan_block"))
    ),
    *(MXFormat("mint4", 32, rounding=rounding, symmetric=False) for rounding in ROUNDINGS),
]
FORMATS = list(dict.fromkeys(_ALL))
