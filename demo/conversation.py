"""The chats that the demo has: a long document, and two users who ask about it."""

import random
from collections.abc import Sequence

from demo.client import Message

NUM_ENTRIES = 60
KEEPERS = ("Ada", "Bela", "Chike", "Dora", "Emil", "Farah", "Goro", "Hana")
WEATHER = ("clear", "drizzle", "fog", "gale", "hail", "haze", "sleet", "snow")
WORK = ("cleaned the lens", "filled the oil tank", "mended the rail", "oiled the gears")
QUESTIONS = (
    "Please list the days on which the wind was above 9, and who was on duty.",
    "Who saw the most ships, and what was mended on that day?",
)


def chat(document_number: int, question_number: int) -> Sequence[Message]:
    """Return the chat in which a user asks one of `QUESTIONS` about one document."""
    return [
        {"role": "system", "content": _document(document_number)},
        {"role": "user", "content": QUESTIONS[question_number]},
    ]


def _document(number: int) -> str:
    """Write the log of lighthouse `number`: always the same, about 3500 tokens of the demo's."""
    choose = random.Random(number)
    lines = [f"Log of lighthouse {number}. Answer questions about it in one sentence."]
    for day in range(1, NUM_ENTRIES + 1):
        keeper, sky, work = (choose.choice(words) for words in (KEEPERS, WEATHER, WORK))
        wind, ships = choose.randrange(13), choose.randrange(60)
        lines.append(f"Day {day}: {keeper} on duty, {sky}, wind {wind}. Saw {ships} ships, {work}.")
    return "\n".join(lines)
