"""The chats that both fleets have: users who come back after others have filled the workers."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo.client import Answer, Client, Message
from demo.conversation import KEEPERS, WEATHER, WORK

NUM_USERS = 8
NUM_TURNS = 4
DOCUMENT_DAYS = 20
QUESTION_DAYS = 4
ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of one user, and its answer."""

    user: int
    number: int
    answer: Answer


class Chats:
    """What all users have said so far."""

    def __init__(self) -> None:
        self.messages: list[list[Message]] = [
            [
                {
                    "role": "system",
                    "content": f"Log of lighthouse {user}. {_days(user, DOCUMENT_DAYS)}",
                }
            ]
            for user in range(NUM_USERS)
        ]

    def hold(self, client: Client, say: Callable[[str], None]) -> list[Turn]:
        """Let all users have all their turns, one at a time, in another order every time."""
        choose = random.Random(0)
        turns = []
        for number in range(NUM_TURNS):
            users = choose.sample(range(NUM_USERS), NUM_USERS)
            turns += [self._turn(client, user, number) for user in users]
            hits = sum(turn.answer.cached_tokens for turn in turns)
            say(f"  turn {number + 1} of {NUM_TURNS}: {hits} tokens hit so far")
        return turns

    def _turn(self, client: Client, user: int, number: int) -> Turn:
        said = self.messages[user]
        seed = NUM_USERS * (number + 1) + user
        said.append({"role": "user", "content": f"And then? {_days(seed, QUESTION_DAYS)}"})
        answer = client.chat(said, ANSWER_TOKENS)
        said.append({"role": "assistant", "content": answer.text})
        return Turn(user, number, answer)


def _days(seed: int, num_days: int) -> str:
    """Write so many days of a log, about 25 tokens of the demo's each; always the same."""
    choose = random.Random(seed)
    return " ".join(
        f"{choose.choice(KEEPERS)} {choose.choice(WORK)}, {choose.choice(WEATHER)}."
        for _ in range(num_days)
    )
