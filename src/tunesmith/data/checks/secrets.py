"""Secrets and personal data, which a fine-tuned model may repeat to anyone: found by form, proved by checksum where there is one.

    api_key("use AKIAIOSFODNN7EXAMPLE")     # "an AWS access key: AKIA… (20 characters)"
    iban("DE89 3704 0044 0532 0130 00")     # "DE89… (22 characters)": only if its check digits are right

What is found is masked: a report of secrets should not be one more place that holds them.
Sources: the prefixes are those that the services document for their keys; Luhn's formula ISO/IEC 7812-1 annex B; IBAN's check digits
ISO 13616 with ISO 7064 mod 97-10, lengths by country from the SWIFT registry.
"""

import ipaddress
import re

from tunesmith.data.checks.finding import TextCheck, masked

_KEYS: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (sign, name, re.compile(pattern))
    for sign, name, pattern in (
        ("AKIA", "an AWS access key", r"\bAKIA[0-9A-Z]{16}\b"),
        ("ASIA", "an AWS access key", r"\bASIA[0-9A-Z]{16}\b"),
        ("gh", "a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
        ("glpat-", "a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("sk-", "an API key (sk-…)", r"\bsk-(?:ant-|proj-|or-|svcacct-)?(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}"),
        ("k_live_", "a Stripe key", r"\b[rs]k_live_[A-Za-z0-9]{16,}"),
        ("xox", "a Slack token", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        ("AIza", "a Google API key", r"\bAIza[A-Za-z0-9_-]{35}"),
        ("ya29.", "a Google OAuth token", r"\bya29\.[A-Za-z0-9_-]{20,}"),
        ("hf_", "a Hugging Face token", r"\bhf_[A-Za-z0-9]{30,}"),
        ("npm_", "an npm token", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ("pypi-", "a PyPI token", r"\bpypi-AgE[A-Za-z0-9_-]{20,}"),
        ("SG.", "a SendGrid key", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
        ("eyJ", "a JSON web token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
        ("AccountKey=", "an Azure storage key", r"AccountKey=[A-Za-z0-9+/]{40,}={0,2}"),
    )
)
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")
_URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:([^\s/:@]{3,64})@[A-Za-z0-9.-]+")
_PASSWORD = re.compile(
    r"\b(?:password|passwd|pwd|passphrase|secret|secret[_-]key|api[_-]?key|access[_-]?token|auth[_-]?token)[\"']?\s*(?:[:=]|is)\s*[\"']?"
    r"(?=[^\s\"']*\d)(?=[^\s\"']*[A-Za-z])([^\s\"',;<>{}\[\]()]{8,64})",
    re.I,
)
_PASSWORD_SIGN = re.compile(r"pass|pwd|secret|api|token", re.I)
_EMAIL = re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_NO_MAILBOX = re.compile(r"@(?:[A-Za-z0-9-]+\.)*(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", re.I)  # RFC 2606
_DIGITS = re.compile(r"\d[\d .()/-]{7,}")
_PHONE = re.compile(
    r"(?<![\w+/.-])(?<!\d )(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}"  # +44 20 7946 0958
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}"  # (202) 555-0143
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}|0[1-9]\d{8,9})(?![\w/-]| \d|\.\d)"  # 020 7946 0958, 07911123456
)
_IBAN = re.compile(r"\b([A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?)\b")
_IBAN_SIGN = re.compile(r"\b[A-Z]{2}\d{2} ?[A-Z0-9]{4}")
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28,
    "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18,
    "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24,
    "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
_CARD = re.compile(r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d-]|\.\d)")
_CARD_PREFIX = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|2720\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}"
)
_IP = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")


def api_key(text: str) -> str:
    for sign, name, pattern in _KEYS:
        if sign in text and (match := pattern.search(text)):
            return f"{name}: {masked(match[0])}"
    return ""


def private_key(text: str) -> str:
    match = _PRIVATE_KEY.search(text) if "-----BEGIN" in text else None
    return match[0] if match else ""


def password(text: str) -> str:
    """In a URL, or named as one; a word without a digit is no password here, for prose speaks of passwords too."""
    if "://" in text and "@" in text and (match := _URL_PASSWORD.search(text)):
        return f"a password in a URL: {masked(match[1], 1)}"
    if (":" in text or "=" in text or " is " in text) and _PASSWORD_SIGN.search(text) and (match := _PASSWORD.search(text)):
        return f"{match[0].split(match[1])[0].strip()} {masked(match[1], 1)}"
    return ""


def email(text: str) -> str:
    if "@" not in text:
        return ""
    for match in _EMAIL.finditer(text):
        in_url = "://" in text[max(0, match.start() - 80) : match.start()].rpartition(" ")[2]  # user:password@host
        if not in_url and not _NO_MAILBOX.search(match[0]):
            name, _, domain = match[0].partition("@")
            return f"{name[0]}…@{domain}"
    return ""


def phone(text: str) -> str:
    if not _DIGITS.search(text):
        return ""
    match = _PHONE.search(text)
    return masked(match[0]) if match else ""


def iban(text: str) -> str:
    """A number of its country's length whose check digits are right (mod 97 = 1)."""
    if not _IBAN_SIGN.search(text):
        return ""
    for match in _IBAN.finditer(text):
        number = match[1].replace(" ", "")
        length = _IBAN_LENGTHS.get(number[:2])
        number = number[:length]
        if length is None or len(number) != length:
            continue
        if int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1:
            return masked(number)
    return ""


def card(text: str) -> str:
    """13 to 19 digits with the prefix and length of an issuer and a right check digit (Luhn)."""
    if not _DIGITS.search(text):
        return ""
    for match in _CARD.finditer(text):
        number = match[0].replace(" ", "").replace("-", "")
        if _CARD_PREFIX.fullmatch(number) and len(set(number)) > 1 and _luhn(number):
            return masked(number)
    return ""


def _luhn(number: str) -> bool:
    doubled = [int(d) * (2 if n % 2 else 1) for n, d in enumerate(reversed(number))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def ip_address(text: str) -> str:
    """A public IPv4 address; four numbers after "version" or "v" are none."""
    if text.count(".") < 3:
        return ""
    for match in _IP.finditer(text):
        try:
            address = ipaddress.IPv4Address(match[0])
        except ValueError:
            continue
        before = text[max(0, match.start() - 12) : match.start()].casefold()
        if address.is_global and int(address) >= 1 << 24 and not re.search(r"v(?:ersion)?\.? ?$|section ?$|build ?$", before):
            return masked(match[0])
    return ""


FORGET = "a tuned model may repeat it to anyone"
CHECKS = (
    TextCheck(
        "api-key", "warning", api_key, f"a key or token of a service: {FORGET}", "take it out, and revoke it: it has been copied already"
    ),
    TextCheck("private-key", "warning", private_key, f"a private key: {FORGET}", "take it out, and replace the key"),
    TextCheck("password", "warning", password, f"what looks like a password: {FORGET}", "take it out, and change it"),
    TextCheck("iban", "warning", iban, f"a bank account (IBAN, check digits right): {FORGET}", "replace it by an invented one"),
    TextCheck("credit-card", "warning", card, f"a payment card (check digit right): {FORGET}", "replace it by an invented one"),
    TextCheck("email-address", "warning", email, f"an e-mail address: {FORGET}", "replace it, as by name@example.com"),
    TextCheck("phone-number", "warning", phone, f"a telephone number: {FORGET}", "replace it by an invented one"),
    TextCheck("ip-address", "note", ip_address, f"a public IP address: {FORGET}", "replace it, as by 192.0.2.1"),
)
