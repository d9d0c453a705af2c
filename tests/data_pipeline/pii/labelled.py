"""Sentences with personal data in them, of which is known where it is, and with what only looks so.

Check digits are made here by searching for one that a plain statement of each rule accepts.
"""

import ipaddress
import random
import string
from datetime import date, timedelta

DIGITS = string.digits


def digits(generator, count):
    return "".join(generator.choices(DIGITS, k=count))


def completed(body, accepts, signs=DIGITS):
    """Put the check signs that a rule accepts in the place of `?`."""
    for sign in signs:
        attempt = body.replace("?", sign, 1)
        if "?" in attempt:
            attempt = completed(attempt, accepts, signs)
            if attempt:
                return attempt
        elif accepts(attempt):
            return attempt
    return None


def luhn(number):
    doubled = [sum(divmod(2 * int(sign), 10)) for sign in number[-2::-2]]
    return (sum(map(int, number[-1::-2])) + sum(doubled)) % 10 == 0


def iban_ok(number):
    number = number.replace(" ", "")
    value = 0
    for sign in number[4:] + number[:4]:
        value = (value * (10 if sign.isdigit() else 100) + int(sign, 36)) % 97
    return value == 1


def grouped(text, sizes, separator):
    parts, place = [], 0
    for size in sizes:
        parts.append(text[place : place + size])
        place += size
    return separator.join(part for part in [*parts, text[place:]] if part)


# --- one function a type; each returns a value that is real


def email(generator):
    local = generator.choice(["jane.doe", "j_smith99", "info+list", "a.b-c", "maria"])
    host = generator.choice(["mail.com", "uni-bonn.de", "sub.domain.co.uk", "firma.io"])
    return f"{local}{generator.randrange(100)}@{host}"


def phone(generator):
    def two_to_nine():
        return generator.choice("23456789")

    area, exchange = two_to_nine() + digits(generator, 2), two_to_nine() + digits(generator, 2)
    line = digits(generator, 4)
    return generator.choice(
        [
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"+1 {area}.{exchange}.{line}".replace(" ", "-").replace(".", "-"),
            f"+49 30 {digits(generator, 4)}{digits(generator, 1)} {digits(generator, 2)}",
            f"+44 20 7{digits(generator, 3)} {digits(generator, 4)}",
            f"01 {digits(generator, 2)} {digits(generator, 2)} {digits(generator, 2)} {digits(generator, 2)}",
            f"+33 1 {digits(generator, 2)} {digits(generator, 2)} {digits(generator, 2)} {digits(generator, 2)}",
            f"0049 89 {digits(generator, 3)}{digits(generator, 3)[:2]}{digits(generator, 2)}",
            f"+91{digits(generator, 10)}",
        ]
    )


def ip(generator):
    while True:
        if generator.random() < 0.3:
            groups = [f"{generator.randrange(1, 2**16):x}" for _ in range(8)]
            groups[0] = "2600"
            text = ":".join(groups) if generator.random() < 0.5 else ":".join(groups[:4]) + "::1"
        else:
            text = ".".join(str(generator.randrange(1, 256)) for _ in range(4))
        if ipaddress.ip_address(text).is_global and (
            "." not in text or max(map(int, text.split("."))) > 99
        ):
            return text


def iban(generator):
    country, length, letters = generator.choice(
        [("DE", 22, 0), ("GB", 22, 4), ("FR", 27, 0), ("NL", 18, 4), ("NO", 15, 0)]
    )
    bank = "".join(generator.choices(string.ascii_uppercase, k=letters))
    text = completed(f"{country}??{bank}{digits(generator, length - 4 - letters)}", iban_ok)
    return grouped(text, [4] * 7, " ") if generator.random() < 0.6 else text


def card(generator):
    kind = generator.choice(["visa", "mastercard", "amex"])
    if kind == "amex":
        text = completed("37" + digits(generator, 12) + "?", luhn)
        return grouped(text, [4, 6], generator.choice([" ", "", "-"]))
    prefix = {"visa": "4", "mastercard": "53"}[kind]
    text = completed(prefix + digits(generator, 15 - len(prefix)) + "?", luhn)
    return grouped(text, [4, 4, 4], generator.choice([" ", "", "-"]))


def birthday(generator):
    return date(1950, 1, 1) + timedelta(days=generator.randrange(18_000))


def national_id(generator):
    born = birthday(generator)
    kind = generator.randrange(8)
    if kind == 0:
        return f"{generator.randrange(1, 600):03}-{generator.randrange(1, 100):02}-{generator.randrange(1, 9999):04}"
    if kind == 1:
        return grouped("AB" + digits(generator, 6) + "C", [2, 2, 2, 2], generator.choice(["", " "]))
    if kind == 2:
        number = generator.randrange(10**8)
        return f"{number:08}" + "TRWAGMYFPDXBNJZSQVHLCKE"[number - number // 23 * 23]
    if kind == 3:
        body = digits(generator, 9)
        return (
            grouped(completed(body + "??", cpf_ok), [3, 3, 3], ".")[:11]
            + "-"
            + completed(body + "??", cpf_ok)[9:]
        )
    if kind == 4:
        body = f"110105{born:%Y%m%d}{digits(generator, 3)}?"
        return completed(body, chinese_ok, DIGITS + "X")
    if kind == 5:
        return completed(
            f"{born:%y%m%d}-{digits(generator, 3)}?", lambda text: luhn(text.replace("-", ""))
        )
    if kind == 6:
        body = f"{generator.choice('12')}{born:%y%m}75{digits(generator, 6)}"
        return grouped(f"{body}{97 - int(body) % 97:02}", [1, 2, 2, 2, 3, 3], " ")
    return "PESEL " + completed(f"{born:%y%m%d}{digits(generator, 4)}?", pesel_ok)


def cpf_ok(text):
    numbers = list(map(int, text))
    for place in (9, 10):
        total = sum((place + 1 - index) * numbers[index] for index in range(place))
        if (11 - total % 11) % 11 % 10 != numbers[place] or (total * 10 % 11 % 10) != numbers[
            place
        ]:
            return False
    return True


def chinese_ok(text):
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
    total = sum(int(sign) * weight for sign, weight in zip(text, weights, strict=False))
    return "10X98765432"[total % 11] == text[17]


def pesel_ok(text):
    weights = [1, 3, 7, 9] * 3
    return (
        sum(int(sign) * weight for sign, weight in zip(text, weights[:10], strict=False)) % 10
        == (10 - int(text[10])) % 10
    )


def secret(generator):
    def random_text(count, signs=string.ascii_letters + DIGITS):
        return "".join(generator.choices(signs, k=count))

    return generator.choice(
        [
            "AKIA" + random_text(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"),
            "ghp_" + random_text(36),
            "xoxb-" + random_text(24),
            "AIza" + random_text(35),
            "sk_live_" + random_text(24),
            "hf_" + random_text(34, string.ascii_letters),
            f"eyJ{random_text(20)}.eyJ{random_text(40)}.{random_text(43)}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{random_text(64)}\n{random_text(64)}\n-----END RSA PRIVATE KEY-----",
        ]
    )


MAKERS = {
    "email": email,
    "phone": phone,
    "ip": ip,
    "iban": iban,
    "card": card,
    "national_id": national_id,
    "secret": secret,
}
FRAMES = {
    "email": ["Write to {} for more.", "Contact: {}", "<{}> wrote:", "(mail {})"],
    "phone": ["Call {} today.", "Tel. {}", "Phone: {}, or come by.", "You can reach us on {}."],
    "ip": ["The request came from {} at noon.", "Server {} is down", "ping {}", "Banned: {}"],
    "iban": ["IBAN {}.", "Please pay to {} by Friday.", "Account: {}"],
    "card": ["Card number {}.", "He paid with {} in the end.", "card: {}"],
    "national_id": ["Her number is {}.", "ID {} was issued.", "({})"],
    "secret": ["token = {}", "The key {} has leaked.", 'key: "{}"'],
}


def lookalike(generator):
    """Return something that is not personal, however it looks."""

    def number(count):
        return digits(generator, count)

    bad_card = completed("4" + number(14) + "?", lambda text: not luhn(text))
    bad_iban = completed("DE??" + number(18), lambda text: not iban_ok(text))
    return generator.choice(
        [
            f"version 10.{number(1)}.{number(2)}.{number(1)}",
            f"see section 110.2.3.{number(1)}",
            "the router is at 192.168.1.1",
            "bind to 127.0.0.1 or 0.0.0.0",
            f"released on 20{generator.randrange(10, 26)}-0{generator.randrange(1, 10)}-1{number(1)}",
            f"on 1{number(1)}.0{generator.randrange(1, 10)}.2019 at 10:45",
            f"it costs $1,{number(3)}.{number(2)}",
            f"ISBN 978-3-16-{number(6)}-0",
            f"commit {''.join(generator.choices('0123456789abcdef', k=40))}",
            f"order 9{number(15)}",
            f"no card: {bad_card}",
            f"no account: {bad_iban}",
            "std::vector<int>::iterator and a::b::c",
            "@app.route and user@localhost and a@b",
            "write to someone@example.com",
            "at 12:34:56 and 00:1A:2B:3C:4D:5E",
            "the years 1939 1945 and 1989",
            f"pi is 3.14159265{number(4)}",
            f"{number(8)}-{number(4)}-4{number(3)}-8{number(3)}-{number(12)}",
            'password = "changeme"',
            'api_key = os.environ["API_KEY"]',
            'token: "<your token here>"',
            "Boston, MA 02110-1301",
            f"matrix 0.5 0.25 {number(2)} {number(2)} {number(3)}",
            f"000-{number(2)}-{number(4)}",
        ]
    )  # fmt: skip


def labelled_documents(count, seed=0):
    """Return [(text, [(start, end, type), ...])]."""
    generator = random.Random(seed)
    documents = []
    for _ in range(count):
        text, spans = "", []
        for _ in range(12):
            if generator.random() < 0.6:
                kind = generator.choice(list(MAKERS))
                value = MAKERS[kind](generator)
                before, after = generator.choice(FRAMES[kind]).split("{}")
                start = len(text) + len(before)
                inner = value.removeprefix("PESEL ")
                end = start + len(value)
                spans.append((end - len(inner), end, kind))
                text += before + value + after + generator.choice([" ", "\n"])
            else:
                text += f"And {lookalike(generator)}, so it is.\n"
        documents.append((text, spans))
    return documents
