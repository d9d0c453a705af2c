"""Numbers that a state gives to a person. Those that are digits alone count only with their name
near by, as every tenth number passes a check digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from data_pipeline.pii import checksums
from data_pipeline.pii.finding import Detector, words_before

_NAME_CHARS = 40


def _signs(match: re.Match[str]) -> str:
    return re.sub(r"[^0-9A-Z]", "", match[0].upper())


def _passing(check: Callable[[str], bool], near: str = "") -> Callable[[re.Match[str]], bool]:
    """Return the test that a match's letters and digits pass a check, and that a name is near."""
    name = re.compile(near)

    def accepts(match: re.Match[str]) -> bool:
        return bool(name.search(words_before(match, _NAME_CHARS))) and check(_signs(match))

    return accepts


def _spanish(signs: str) -> bool:
    number = signs[:-1].translate(str.maketrans("XYZ", "012"))
    return checksums.spanish_letter(int(number)) == signs[-1]


def _chinese(signs: str) -> bool:
    born = int(signs[6:10]), int(signs[10:12]), int(signs[12:14])
    return 1900 <= born[0] <= 2099 and checksums.is_date(*born) and checksums.mod_11_2(signs)


def _swedish(signs: str) -> bool:
    born = signs[-10:]
    day = int(born[4:6]) % 60  # 60 is added for people who are visiting
    return checksums.is_date(2000, int(born[2:4]), day) and checksums.luhn(born)


_DETECTORS = (
    # United States: no area 000, 666 or 9xx, no group 00, no serial 0000.
    Detector(re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")),
    # United Kingdom: national insurance.
    Detector(
        re.compile(
            r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)"
        )
    ),
    # Spain: DNI and NIE.
    Detector(
        re.compile(r"(?<![\w-])(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z](?!\w)"), _passing(_spanish)
    ),
    # Italy: codice fiscale.
    Detector(
        re.compile(
            r"(?<!\w)[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z](?!\w)"
        ),
        _passing(checksums.codice_fiscale),
    ),
    # France: number of social security.
    Detector(
        re.compile(
            r"(?<![\w.-])[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-4]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d(?!\w)"
        ),
        _passing(checksums.nir),
    ),
    # Brazil: CPF, as it is written.
    Detector(re.compile(r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d\d(?![\w-])"), _passing(checksums.cpf)),
    # India: Aadhaar.
    Detector(
        re.compile(r"(?<![\w.-])[2-9]\d{3}([ -])\d{4}\1\d{4}(?![\w-]|[ -]\d)"),
        _passing(checksums.verhoeff),
    ),
    # China: resident identity card.
    Detector(re.compile(r"(?<![\w.-])[1-8]\d{16}[\dXx](?!\w)"), _passing(_chinese)),
    # Sweden: personnummer.
    Detector(re.compile(r"(?<![\w.-])(?:19|20)?\d{6}[-+]\d{4}(?![\w-])"), _passing(_swedish)),
    # Poland: PESEL.
    Detector(
        re.compile(r"(?<![\w.-])\d{11}(?![\w-])"),
        _passing(checksums.pesel, "pesel"),
        ("pesel",),
    ),
)
NATIONAL_IDS = tuple(replace(detector, numeric=True) for detector in _DETECTORS)
