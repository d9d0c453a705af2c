"""A foretold loss beside the measured one: what is expected, one warning, one chart for both."""

import json
import logging

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from maxlm.config.errors import UserError
from maxlm.metrics.prediction import (
    Expectation,
    Expected,
    Prediction,
    check_prediction,
    read_prediction,
    to_json,
)
from maxlm.metrics.writers.writer import MetricsWriter

LOSS = "val/books/loss"
PREDICTION = Prediction(
    LOSS, 1000, 64_000, Expected(2.0, 1.9, 2.2), ((0.5, 1.2, 1.1, 1.3), (1.0, 1.0, 1.0, 1.0))
)


def test_what_is_expected_on_the_way_has_the_shape_of_the_ladder(caplog):
    expectation = Expectation(PREDICTION, num_steps=100)
    assert expectation.beside(49, {LOSS: 9.0}) == {}  # before anything is known
    half = expectation.beside(50, {LOSS: 2.4})
    assert half == {
        "predicted/books/expected": pytest.approx(2.0 * 1.2),
        "predicted/books/low": pytest.approx(1.9 * 1.1),
        "predicted/books/high": pytest.approx(2.2 * 1.3),
    }
    assert expectation.beside(100, {LOSS: 2.0})["predicted/books/expected"] == pytest.approx(2.0)
    assert not caplog.records


@pytest.mark.parametrize("measured", [1.89, 2.21, float("nan")])
def test_a_loss_that_leaves_the_interval_is_told_once(caplog, measured: float):
    expectation = Expectation(PREDICTION, num_steps=100)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            expectation.beside(100, {LOSS: measured})
    (told,) = caplog.messages
    assert told == f"step 100: {LOSS} is {measured:.4f}, outside the predicted 1.9000 to 2.2000"


def test_both_losses_are_in_one_chart(tmp_path):
    expectation = Expectation(PREDICTION, num_steps=100)
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    writer.charts(expectation.charts)
    writer.write(100, {LOSS: 2.1, **expectation.beside(100, {LOSS: 2.1})})
    writer.close()
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    (chart,) = layout.category[0].chart
    assert set(chart.multiline.tag) <= set(events.Tags()["tensors"])
    assert chart.multiline.tag[0] == LOSS
    assert len(chart.multiline.tag) == 4


def test_a_prediction_is_read_back_and_that_of_another_run_is_refused(tmp_path):
    path = tmp_path / "prediction.json"
    path.write_text(json.dumps(to_json(PREDICTION)))
    prediction = read_prediction(str(path))
    assert prediction == PREDICTION
    check_prediction(prediction, str(path), parameters=1000, tokens=64_000, losses=[LOSS])
    with pytest.raises(UserError, match=r"parameters=1,000 and the run has 1,001; loss=val/books"):
        check_prediction(
            prediction, str(path), parameters=1001, tokens=64_000, losses=["val/web/loss"]
        )
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a prediction; make it: maxlm ladder fit"):
        read_prediction(str(path))
