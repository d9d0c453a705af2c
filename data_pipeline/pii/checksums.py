"""Check digits of numbers that people are known by; each function takes digits (and letters) alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

# Verhoeff's scheme (1969): the multiplication of the dihedral group of order 10, and a permutation.
_DIHEDRAL = [
    [
        (left + right) % 5 + 5 * (right > 4)
        if left < 5 and right < 5
        else (left + right) % 5 + 5
        if left < 5
        else (left - right) % 5 + 5
        if right < 5
        else (left - right) % 5
        for right in range(10)
    ]
    for left in range(10)
]
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def luhn(digits: str) -> bool:
    """Return whether a number passes Luhn's check (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, sign in enumerate(reversed(digits)):
        value = int(sign) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def mod_97(signs: str) -> bool:
    """Return whether an IBAN passes its check (ISO 7064, mod 97-10): letters count from 10."""
    moved = signs[4:] + signs[:4]
    return int("".join(str(int(sign, 36)) for sign in moved)) % 97 == 1


def verhoeff(digits: str) -> bool:
    """Return whether a number passes Verhoeff's check."""
    check = 0
    for place, sign in enumerate(reversed(digits)):
        value = int(sign)
        for _ in range(place % 8):
            value = _PERMUTATION[value]
        check = _DIHEDRAL[check][value]
    return check == 0


def weighted(digits: str, weights: Sequence[int]) -> int:
    """Return the sum of digits times weights."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def mod_11_2(signs: str) -> bool:
    """Return whether a Chinese identity number passes its check (ISO 7064, mod 11-2)."""
    check = 0
    for sign in signs[:-1]:
        check = (check + int(sign)) * 2 % 11
    return "0123456789X"[(12 - check) % 11] == signs[-1].upper()


def cpf(digits: str) -> bool:
    """Return whether a Brazilian CPF has its two check digits, and not all digits the same."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        rest = weighted(digits[:length], range(length + 1, 1, -1)) * 10 % 11 % 10
        if rest != int(digits[length]):
            return False
    return True


def pesel(digits: str) -> bool:
    """Return whether a Polish PESEL has its check digit and begins with a date; the century is in
    the month.
    """
    century, month = divmod(int(digits[2:4]), 20)
    year = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[century] + int(digits[:2])
    check = (10 - weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10) % 10
    return is_date(year, month, int(digits[4:6])) and check == int(digits[10])


def spanish_letter(number: int) -> str:
    """Return the letter that belongs to the number of a Spanish DNI or NIE."""
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]


def nir(signs: str) -> bool:
    """Return whether a French social security number of 15 signs has its key (mod 97)."""
    body = signs[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(body) % 97 == int(signs[13:])


# Of the digits 0 to 9 and the letters A to Z, both from 0: what each counts at an odd place.
_AT_ODD_PLACES = bytes.fromhex(
    "01 00 05 07 09 0d 0f 11 13 15 02 04 12 14 0b 03 06 08 0c 0e 10 0a 16 19 18 17"
)


def codice_fiscale(signs: str) -> bool:
    """Return whether an Italian tax code has its check letter (decree of 23 December 1976)."""
    values = [int(sign, 36) - 10 * sign.isalpha() for sign in signs]
    total = sum(_AT_ODD_PLACES[value] for value in values[0:15:2]) + sum(values[1:15:2])
    return total % 26 == values[15]


def is_date(year: int, month: int, day: int) -> bool:
    """Return whether there is such a day."""
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
