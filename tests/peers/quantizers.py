"""What each peer makes of a tensor: its own quantization, read back by itself, in the tensor's dtype.

Peers are imported when they are called, as most machines have none of them. A function changes nothing of its argument.
"""

import re

import torch
from torch import Tensor

MX_BLOCK = 32
NV_BLOCK = 16


def torchao_mx(x: Tensor, element: str, mode: str) -> Tensor:
    from torchao.prototype.mx_formats import constants
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    dtypes = {
        "fp8_e4m3": torch.float8_e4m3fn,
        "fp8_e5m2": torch.float8_e5m2,
        "fp6_e3m2": constants.DTYPE_FP6_E3M2,
        "fp6_e2m3": constants.DTYPE_FP6_E2M3,
        "fp4_e2m1": torch.float4_e2m1fn_x2,
    }
    scale, codes = to_mx(x, dtypes[element], MX_BLOCK, ScaleCalculationMode[mode.upper()])
    return to_dtype(codes, scale, dtypes[element], MX_BLOCK, x.dtype)


def torchao_nvfp4(x: Tensor, two_level: bool) -> Tensor:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    scale = per_tensor_amax_to_scale(x.abs().max()) if two_level else None
    return NVFP4Tensor.to_nvfp4(x, NV_BLOCK, scale).dequantize(x.dtype)


def compressed_tensors(x: Tensor, scheme: str) -> Tensor:
    """Weights as llm-compressor observes them: minima and maxima of groups, and one global scale of the matrix."""
    from compressed_tensors.quantization import quant_scheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = getattr(quant_scheme, scheme)["weights"]
    groups = x.unflatten(-1, (-1, args.group_size))
    global_scale = generate_gparam(x.min(), x.max()) if args.strategy == "tensor_group" else None
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale)
    return fake_quantize(x, scale, zero_point, args, global_scale).to(x.dtype)


def quark_mx(x: Tensor, element: str, mode: str) -> Tensor:
    from quark.torch.kernel.hw_emulation.hw_emulation_interface import fake_quantize_mx

    name = {"fp4_e2m1": "fp4"}.get(element, element)
    return fake_quantize_mx(x.clone(), -1, MX_BLOCK, mode, mx_element_dtype=name)


def quark_scheme(x: Tensor, scheme: str, **options: int) -> Tensor:
    """Weights under one of its schemes, of one stage or of two."""
    from quark.torch.quantization.config import template
    from quark.torch.quantization.tensor_quantize import FakeQuantizeBase

    spec = getattr(template, scheme)(**options).config.weight
    quantizer = FakeQuantizeBase.get_fake_quantize(spec, x.device)
    for stage in quantizer if isinstance(quantizer, torch.nn.Sequential) else [quantizer]:
        stage.enable_observer()
        stage.enable_fake_quant()
    return quantizer(x.clone())


def gguf_mxfp4(x: Tensor) -> Tensor:
    """Weights as llama.cpp's Python package packs them."""
    import gguf
    import numpy as np

    with np.errstate(all="ignore"):
        packed = gguf.quantize(x.float().numpy(), gguf.GGMLQuantizationType.MXFP4)
        read = gguf.dequantize(packed, gguf.GGMLQuantizationType.MXFP4)
    return torch.from_numpy(read).view(x.shape).to(x.dtype)


def vllm_nvfp4(x: Tensor) -> Tensor:
    """Inputs as vLLM's emulation of NVFP4 defines them (ref_nvfp4_quant_dequant at 055e47c, without Triton), restated.

    vLLM itself installs on no CPU.
    """
    blocks = x.float().unflatten(-1, (-1, NV_BLOCK))
    over = 2688 * (1 / x.abs().max().float())
    sixth = blocks.abs().amax(-1, keepdim=True) * (1 / 6)
    scale = (over * sixth).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    of_tensor = 1 / (over + (over == 0) * 1e8)
    divisor = scale * of_tensor
    quotient = (blocks * (1 / (divisor + (divisor == 0) * 1e8))).clamp(-6, 6)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    between = (grid[1:] + grid[:-1]) / 2
    below, above = (torch.bucketize(quotient.abs(), between, right=right) for right in (False, True))
    code = torch.where(below % 2 == 0, below, above)  # a tie goes to the even code
    return (grid[code] * quotient.sign() * (scale / over)).flatten(-2).to(x.dtype)


def auto_round_mx(x: Tensor, element: str) -> Tensor:
    from auto_round.data_type.mxfp import quant_mx

    bits = int(re.search(r"\d", element)[0])
    name = "mx_" + element.replace("_", "")
    return quant_mx(x.clone(), bits, MX_BLOCK, data_type=name)[0]


def auto_round_nvfp4(x: Tensor, name: str) -> Tensor:
    from auto_round.data_type import nvfp

    return getattr(nvfp, name)(x.clone(), group_size=NV_BLOCK)[0]


def modelopt_mxfp8(x: Tensor) -> Tensor:
    from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor

    codes, scale = MXFP8QTensor.quantize(x.clone())
    return codes.dequantize(scale=scale)


def modelopt_mxfp4(x: Tensor) -> Tensor:
    from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor

    codes, scale = MXFP4QTensor.quantize(x.clone(), MX_BLOCK)
    return codes.dequantize(scale=scale, block_sizes={-1: MX_BLOCK})


def modelopt_nvfp4(x: Tensor) -> Tensor:
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    codes, scale, double_scale = NVFP4QTensor.quantize(x.clone(), NV_BLOCK)
    return codes.dequantize(scale=scale, double_scale=double_scale, block_sizes={-1: NV_BLOCK})
