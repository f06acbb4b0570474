"""Other launches of the kernels that `gpu_suite.py --tune` times: what the tiles in the library were chosen by."""

from dataclasses import replace

import torch
import triton

from saetools.kernels.backward_adam.control import Control
from saetools.kernels.backward_adam.tiles import Tile
from saetools.kernels.by_feature.triton import Sorted, sort_slots
from saetools.kernels.encode_topk import triton as encode
from scripts.gpu_measure import DEVICE, SHAPES, Ceilings, Report, random_step, times


def tune(report: Report, shape: str, device: Ceilings) -> None:
    """Other launches of the feature kernel."""
    _, D, F, k = SHAPES[shape]
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    step, _ = random_step(shape, {})
    step.launch()
    slots = sort_slots(step.keys_M, F)
    for mega in (32, 64, 128, 512):
        step.settings = replace(step.settings, chunk_bytes=mega << 20)
        report.add(
            shape, f"encode, {mega} MiB of pre-activations", "time", "ms", times(lambda n: step.encode(), repeats=7)
        )
    rows = encode.chunk_rows(len(step.x_ND), F, 2, step.settings.chunk_bytes)
    pre = step.workspace.get("encode.pre", (rows, F), torch.bfloat16, step.device)
    best = step.workspace.get("encode.max", (rows, F // 32), torch.float32, step.device)
    out = tuple(t.view(-1, k)[:rows] for t in (step.values_M, step.indices_M, step.keys_M))
    for block in (1024, 2048, 4096, 8192):
        ms = times(lambda n, b=block: encode.group_max(pre, step.weights.b_enc_F, best, b))
        report.add(shape, f"group maxima: {block} columns", "time", "ms", ms)
    step.control.values[Control.NEEDED] = 1
    none = Sorted(slots.keys_M, slots.order_M, torch.zeros_like(slots.offsets_F1))
    report.add(shape, "update without slots", "time", "ms", times(lambda n: step.backward.update(none)))
    report.add(shape, "measure without slots", "time", "ms", times(lambda n: step.backward.measure(none)))
    scratch = torch.empty(rows, encode.scratch_columns(k, F), dtype=torch.int32, device=DEVICE)
    for warps in (1, 2, 4, 8):
        ms = times(lambda n, w=warps: encode.select(pre, step.weights.b_enc_F, best, scratch, out, k, True, warps=w))
        report.add(shape, f"select with the maxima, {rows} rows: {warps} warps", "time", "ms", ms)
    for columns, warps, slots_at_once, per in (
        (256, 1, 2, 24), (256, 1, 8, 24), (512, 1, 4, 24), (512, 1, 2, 24), (1024, 2, 4, 24), (512, 1, 8, 24),
    ):  # fmt: skip
        tile = Tile(columns, warps, slots_at_once, max(1, per * processors // triton.cdiv(D, columns)))
        back = type(step.backward)(step.backward.p, step.control, step.rule, (tile, step.backward.updating))
        back.sums(slots)
        report.add(shape, f"measure: {tile}", "time", "ms", times(lambda n, b=back: b.measure(slots), 5, 2))
    for columns, warps, slots_at_once, per in (
        (256, 1, 2, 64), (256, 1, 4, 64), (256, 1, 8, 64), (512, 2, 2, 64), (512, 2, 4, 64), (512, 2, 8, 64),
        (1024, 4, 2, 64), (1024, 4, 4, 64), (512, 2, 4, 512),
    ):  # fmt: skip
        tile = Tile(columns, warps, slots_at_once, min(F, processors * per))
        back = type(step.backward)(step.backward.p, step.control, step.rule, (step.backward.measuring, tile))
        back.sums(slots)
        report.add(shape, f"update: {tile}", "time", "ms", times(lambda n, b=back: b.update(slots), 5, 2))
