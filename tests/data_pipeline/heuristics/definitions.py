"""The published rules written down a second time, as slowly and plainly as they can be said; they
share nothing with the package.
"""

from collections import Counter

PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~\u2022\u2026\u201c\u201d\u2019")


def tokens(text):
    """Words and marks: marks around a word stand alone, hyphens and slashes in it too."""
    found = []
    for chunk in text.split():
        word = ""
        pieces = []
        for sign in chunk:
            if sign in "/-":
                pieces += [word, sign]
                word = ""
            else:
                word += sign
        for piece in [*pieces, word]:
            inner = [place for place, sign in enumerate(piece) if sign not in PUNCTUATION]
            if not inner:
                found += list(piece)
            else:
                first, last = inner[0], inner[-1]
                found += [*piece[:first], piece[first : last + 1], *piece[last + 1 :]]
    return _joined(found, text)


def _joined(found, text):
    """Join runs of dots and hyphens that stand together in the text."""
    out, place = [], 0
    for token in found:
        start = text.index(token, place)
        if (
            out
            and token in ".-"
            and out[-1].endswith(token)
            and set(out[-1]) == {token}
            and start == place
        ):
            out[-1] += token
        else:
            out.append(token)
        place = start + len(token)
    return out


def gopher_quality(text, words):
    """MassiveText, A.1.1: the names of the rules that a text breaks."""
    names = [word for word in words if not set(word) <= PUNCTUATION]
    mean = sum(len(word) for word in names) / len(names) if names else 0
    lines = [line.strip() for line in text.splitlines() or [""]]
    count = max(len(words), 1)
    bullets = [line for line in lines if line and line[0] in "-\u2022"]
    ellipses = [line for line in lines if line.endswith(("...", "\u2026"))]
    with_letters = [word for word in words if any(sign.isalpha() for sign in word)]
    stop_words = {"the", "be", "to", "of", "and", "that", "have", "with"}
    dots = text.count("...") + text.count("\u2026")
    rules = {
        "min_doc_words": len(names) < 50,
        "max_doc_words": len(names) > 100_000,
        "min_avg_word_length": mean < 3,
        "max_avg_word_length": mean > 10,
        "max_hash_word_ratio": text.count("#") / count > 0.1,
        "max_ellipsis_word_ratio": dots / count > 0.1,
        "max_bullet_lines_ratio": len(bullets) / len(lines) > 0.9,
        "max_ellipsis_lines_ratio": len(ellipses) / len(lines) > 0.3,
        "min_alpha_words_ratio": len(with_letters) / count < 0.8,
        "min_stop_words": len(set(words) & stop_words) < 2,
    }
    return {name for name, broken in rules.items() if broken}


def duplicates(parts):
    """(parts that repeat an earlier one, their characters)."""
    seen, count, chars = set(), 0, 0
    for part in parts:
        if part in seen:
            count, chars = count + 1, chars + len(part)
        seen.add(part)
    return count, chars


def _split(text, least):
    """Split at runs of at least so many line ends."""
    parts, part, place = [], "", 0
    while place < len(text):
        run = 0
        while place + run < len(text) and text[place + run] == "\n":
            run += 1
        if run >= least:
            parts.append(part)
            part = ""
        else:
            part += text[place : place + run]
        place += run
        if place < len(text):
            part += text[place]
            place += 1
    if text.endswith("\n" * least):
        parts.append("")
    else:
        parts.append(part)
    return parts


def top_ngram(words, n):
    grams = [" ".join(words[place : place + n]) for place in range(len(words) - n + 1)]
    if not grams:
        return 0
    [(gram, count)] = Counter(grams).most_common(1)
    return len(gram) * count


def duplicate_ngrams(words, n):
    seen, chars, place = set(), 0, 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in seen:
            chars += sum(map(len, gram))
            place += n
        else:
            seen.add(gram)
            place += 1
    return chars


def gopher_repetition(text, words):
    """MassiveText, table A1: the names of the rules that a text breaks."""
    chars = max(len(text), 1)
    paragraphs, lines = _split(text.strip(), 2), _split(text, 1)
    shares = {
        "max_dup_para_frac": (duplicates(paragraphs)[0] / max(len(paragraphs), 1), 0.30),
        "max_dup_para_char_frac": (duplicates(paragraphs)[1] / chars, 0.20),
        "max_dup_line_frac": (duplicates(lines)[0] / max(len(lines), 1), 0.30),
        "max_dup_line_char_frac": (duplicates(lines)[1] / chars, 0.20),
    }
    for n, limit in ((2, 0.20), (3, 0.18), (4, 0.16)):
        shares[f"max_top_{n}_gram_char_frac"] = (top_ngram(words, n) / chars, limit)
    for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)):
        shares[f"max_dup_{n}_gram_char_frac"] = (duplicate_ngrams(words, n) / chars, limit)
    return {name for name, (share, limit) in shares.items() if share > limit}


def fineweb(text, words):
    """FineWeb, 3.5: the names of the rules that a text breaks."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return {"min_line_punct_ratio"}
    return {
        name
        for name, broken in {
            "min_line_punct_ratio": sum(line[-1] in ".!?\u2026" for line in lines) / len(lines)
            < 0.12,
            "max_short_line_ratio": sum(len(line) <= 30 for line in lines) / len(lines) > 0.67,
            "max_char_dup_ratio": duplicates(lines)[1] / len(text.replace("\n", "")) > 0.01,
            "max_new_line_ratio": text.count("\n") / max(len(words), 1) > 0.3,
        }.items()
        if broken
    }


POLICY = ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies"]
MARKS = ["[edit]", "[citation needed]", "[]", *(f"[{number}]" for number in range(1000))]


def c4(text):
    """C4, 2.2 and its code: the rule that a text breaks, or the lines that are left."""
    kept = []
    for line in text.split("\n"):
        verdict = c4_line(line.strip())
        if verdict in ("lorem_ipsum", "curly_bracket"):
            return verdict
        if verdict != "out":
            kept.append(verdict)
    return "min_sentences" if sum(map(sentences, kept)) < 5 else "\n".join(kept).strip()


def c4_line(line):
    """What is left of a line, "out" for nothing, or the rule that ends the document."""
    words = line.split()
    for mark in MARKS:
        line = line.replace(mark, "")
    lower = line.lower()
    if any(len(word) > 1000 for word in words) or len(words) < 3:
        return "out"
    if not line.endswith((".", "!", "?", '"', "'")) or line.endswith("..."):
        return "out"
    if "lorem ipsum" in lower:
        return "lorem_ipsum"
    if "javascript" in lower:
        return "out"
    if "{" in line:
        return "curly_bracket"
    return "out" if any(phrase in lower for phrase in [*POLICY, "use cookies"]) else line


def sentences(line):
    """Sentences of a line: they end with a mark, and what closes with it, before a space."""
    count, sentence = 0, ""
    for place, sign in enumerate(line):
        sentence += sign
        rest = line[place + 1 :]
        if sentence.rstrip("\"')]")[-1:] in tuple(".!?\u2026") and (not rest or rest[0] == " "):
            count += any(letter.isalnum() for letter in sentence)
            sentence = ""
    return count + any(letter.isalnum() for letter in sentence)
