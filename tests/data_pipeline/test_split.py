import pytest

from data_pipeline import split
from data_pipeline.reading import Document
from maxlm.config.errors import UserError


def documents(count):
    return [Document(f"name{number}", "x") for number in range(count)]


def split_documents(documents, fraction, max_document_bytes=1000):
    return split.split_documents(documents, fraction, max_document_bytes)


def names(part):
    return [document.name for document in part]


def test_every_document_is_in_one_split_and_the_fraction_is_met():
    train, validation = split_documents(documents(5000), 0.1)
    assert sorted(names(train) + names(validation)) == sorted(names(documents(5000)))
    assert len(validation) == pytest.approx(500, abs=80)


def test_a_document_s_split_does_not_depend_on_the_others():
    train, validation = split_documents(documents(1000), 0.1)
    fewer_train, fewer_validation = split_documents(documents(500), 0.1)
    assert set(names(fewer_train)) < set(names(train))
    assert set(names(fewer_validation)) < set(names(validation))


def test_more_validation_takes_documents_from_train_only():
    assert set(names(split_documents(documents(1000), 0.1)[1])) < set(
        names(split_documents(documents(1000), 0.2)[1])
    )


def test_order_is_random_but_fixed():
    train, _ = split_documents(documents(100), 0.1)
    assert names(train) == names(split_documents(documents(100)[::-1], 0.1)[0])
    assert names(train) != sorted(names(train))
    assert names(train) != sorted(names(train), key=lambda name: int(name[4:]))


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_few_documents_give_one_to_either_split(fraction):
    for count in (2, 3, 5):
        train, validation = split_documents(documents(count), fraction)
        assert train
        assert validation


def test_one_document_cannot_be_split():
    with pytest.raises(UserError, match=r"only one document is left.*lines of a \.jsonl"):
        split_documents(documents(1), 0.5)
    with pytest.raises(UserError, match="no document is left without copies"):
        split_documents([], 0.5)


def test_pieces_of_a_document_are_in_one_split():
    long = [Document(f"name{number}", f"{number}\n" * 50) for number in range(100)]
    train, validation = split_documents(long, 0.3, 40)
    assert (
        len(train) + len(validation) == sum(-(-len(document.text) // 40) for document in long) > 200
    )
    parents = [{name.partition("#")[0] for name in names(part)} for part in (train, validation)]
    assert not parents[0] & parents[1]
    assert parents[0] | parents[1] == set(names(long))
    # Cutting moves no document.
    assert parents[1] == set(names(split_documents(documents(100), 0.3)[1]))
    assert sorted(names(train)) != names(train)


def test_names_that_differ_in_undecodable_bytes_are_split_apart():
    """Such names were one name once: all went to the same split."""
    same = [Document("\udc80" + chr(0xDC00 + number), "x") for number in range(0x81, 0xFF)]
    train, validation = split_documents(same, 0.5)
    assert len(validation) == pytest.approx(63, abs=30)
    assert len(train) + len(validation) == 126
