"""Whether a run may go on from a checkpoint: what differs from the circumstances it was saved in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maxlm.config.errors import UserError
from maxlm.config.resume import compare_runs
from maxlm.config.schema import RunConfig
from maxlm.events import event
from maxlm.train.resume.record import Circumstances, order_of
from maxlm.train.resume.rules import Difference, Level

log = logging.getLogger(__name__)

Record = Mapping[str, Any]

_MOVE_ROWS = {"read", "tokens", "pages", "order"}
_CODE = {"maxlm", "code of maxlm"}
_COMPILERS = {"jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "flax", "optax"}
_ADDED = ("text", "pages", "order", "manifests", "compute_dtype", "devices")
"""What records of older versions do not have."""


def check_resume(record: Record | None, config: RunConfig, now: Circumstances) -> list[Difference]:
    """Compare a checkpoint's record with the run that wants to go on from it, and say what differs.

    Args:
      record: of the checkpoint; None where there is none. What an older version did not record is
        not compared.
      config: the run.
      now: what it has here.

    Returns:
      All differences.

    Raises:
      UserError: the run has gone beyond `train.num_steps`, the checkpoint is no run's, or something
        differs that `RULES` refuses, without `checkpoint.allow_config_change`.
    """
    if record is None:
        return []
    _refuse_no_run(record, config)
    _refuse_fewer_steps(record["step"], config)
    found = [*_of_settings(record, config, now), *_of_text(record, config, now)]
    found += [*_of_order(record, now, found), *_of_devices(record, config, now)]
    found += _of_versions(record.get("versions", {}), now.versions)
    refused = [one for one in found if one.level is Level.REFUSE]
    if refused:
        _refuse_or_warn(refused, record, config)
    _say(record["step"], found)
    if missing := [name for name in _ADDED if name not in record]:
        log.info("the checkpoint is of an older version; not compared: %s", ", ".join(missing))
    return found


def loss_may_change(differences: Sequence[Difference]) -> bool:
    """Tell whether losses may leave their course by what the user has changed knowingly."""
    return any(one.level is Level.REFUSE or one.rule in ("rates", "to_come") for one in differences)


# --- what differs ---------------------------------------------------------------------------------


def _of_settings(record: Record, config: RunConfig, now: Circumstances) -> Iterator[Difference]:
    matter, later, mixture = compare_runs(record["config"], config, steps_done=record["step"])
    for change in matter:
        # `auto` may have been spelt out: what it stands for is compared.
        if change.key != "train.compute_dtype" or "compute_dtype" not in record:
            yield Difference("settings", str(change))
    for change in later:
        yield Difference("rates", f"learning rates of steps to come: {change}")
    train = now.datasets.train
    before, here = record.get("mixture"), train.mixture.until(record["consumed"]["rows"])
    if before is not None and before != here:
        yield from (Difference("read", str(change)) for change in mixture)
        yield Difference("read", f"the mixture of rows that were read: {before} -> {here}")
    else:
        yield from (Difference("to_come", f"rows to come: {change}") for change in mixture)
    if (was := record.get("tokenizer", train.tokenizer.fingerprint)) != train.tokenizer.fingerprint:
        tokenizer = _short(was, train.tokenizer.fingerprint)
        yield Difference("tokenizer", f"data.tokenizer (its contents): {tokenizer}")


def _of_text(record: Record, config: RunConfig, now: Circumstances) -> Iterator[Difference]:
    data = now.datasets.train.fingerprint
    if record["data"] != data:
        tokens = _short(record["data"], data)
        yield Difference("tokens", f"data.sources (the tokens): {tokens}")
    before = record.get("text", {})
    for name in sorted({*before, *now.text} if "text" in record else ()):
        split, source = name.split("/", 1)
        if source not in config.data.sources or source not in record["config"]["data"]["sources"]:
            continue  # the settings tell it
        path, was, here = f"data.sources.{source}", before.get(name), now.text.get(name)
        if split == "validation" and here is None:
            yield Difference("held_out_gone", f"{path}: its held-out text is not there any more")
        elif split == "validation" and was is None:
            yield Difference("held_out_new", f"{path}: it has held-out text now")
        elif split == "validation" and was != here:
            yield Difference("held_out", f"{path} (its held-out text): {_short(was, here)}")
        elif was == here and record.get("pages", now.pages)[name] != now.pages[name]:
            yield Difference(
                "pages",
                f"{path}: files of {split} hold other text than those that the index describes",
            )
    for source, was in record.get("manifests", {}).items():
        if source in now.manifests and was != now.manifests[source]:
            yield _of_manifest(source, was, now.manifests[source])


def _of_manifest(source: str, was: str | None, here: str | None) -> Difference:
    path = f"data.sources.{source}"
    if here is None:
        return Difference("manifest_gone", f"{path}: its manifest.json is not there any more")
    return Difference("manifest", f"{path} (its manifest.json): {_short(was, here)}")


def _of_order(
    record: Record, now: Circumstances, found: Sequence[Difference]
) -> Iterator[Difference]:
    """Compare the order of rows, unless what decides about it differs: that is said already."""
    known = any(one.rule in ("read", "tokens") or _moves_rows(one) for one in found)
    if known or "order" not in record:
        return
    here = order_of(now.datasets.train, record["consumed"]["rows"])
    if record["order"] != here:
        order = _short(record["order"], here)
        yield Difference("order", f"the order of rows that were read: {order}")


def _of_devices(record: Record, config: RunConfig, now: Circumstances) -> Iterator[Difference]:
    was = record.get("compute_dtype", now.compute_dtype)
    if was != now.compute_dtype:
        asked = config.train.compute_dtype
        cure = f" (train.compute_dtype={asked}); train.compute_dtype={was} goes on as before"
        yield Difference("compute_dtype", f"the compute dtype: {was} -> {now.compute_dtype}{cure}")
    before, here = record.get("devices", now.devices), now.devices
    if before["platform"] != here["platform"]:
        text = f"platform: {before['platform']} -> {here['platform']}"
        yield Difference("platform", text)
    elif before["kind"] != here["kind"]:
        yield Difference("device_kind", f"kind of device: {before['kind']} -> {here['kind']}")
    if before["count"] != here["count"]:
        yield Difference("device_count", f"devices: {before['count']} -> {here['count']}")


def _of_versions(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            rule = "code" if name in _CODE else "compilers" if name in _COMPILERS else "libraries"
            yield Difference(rule, f"{name}: {before[name]} -> {now[name]}")


def _short(was: str | None, here: str | None) -> str:
    return " -> ".join("(none)" if one is None else one[:12] for one in (was, here))


# --- what is done about it ------------------------------------------------------------------------


def _say(step: int, found: Sequence[Difference]) -> None:
    warned = [one.text for one in found if one.level is Level.WARN]
    fine = [one.text for one in found if one.level is Level.FINE]
    if warned:
        marked = event("resume_warning", step=step, differences=warned)
        listed = "\n  ".join(warned)
        log.warning("not as at step %d (saved -> now):\n  %s", step, listed, extra=marked)
    if fine:
        log.info("not as at step %d, of no consequence: %s", step, "; ".join(fine))


def _refuse_or_warn(refused: Sequence[Difference], record: Record, config: RunConfig) -> None:
    texts = [one.text for one in refused]
    listed, step = "\n  ".join(texts), record["step"]
    if not config.checkpoint.allow_config_change:
        raise UserError(
            f"run_dir={config.run_dir} holds a run at step {step} with other settings, text or devices (saved -> "
            f"now):\n  {listed}\nset them back, choose another run_dir, or resume all the same with "
            "checkpoint.allow_config_change=true"
        )
    log.warning(
        "resuming with changed settings (checkpoint.allow_config_change=true):\n  %s",
        listed,
        extra=event("resume_overridden", step=step, differences=texts),
    )
    if any(one.rule in _MOVE_ROWS or _moves_rows(one) for one in refused):
        log.warning(
            "the data's rows are others now: what the run has read may come again, and some may never"
        )


def _moves_rows(one: Difference) -> bool:
    return one.rule == "settings" and one.text.startswith(("data.", "runtime.seed"))


def _refuse_no_run(record: Record, config: RunConfig) -> None:
    if "consumed" not in record or "config" not in record:
        raise UserError(
            f"run_dir={config.run_dir} holds weights that were imported, not a run; start from them in another "
            f"run_dir, with train.init_from={config.run_dir}"
        )


def _refuse_fewer_steps(done: int, config: RunConfig) -> None:
    if done > config.train.num_steps:
        raise UserError(
            f"run_dir={config.run_dir} holds a run at step {done}, beyond train.num_steps={config.train.num_steps}; "
            f"use train.num_steps={done} or more, or another run_dir"
        )
