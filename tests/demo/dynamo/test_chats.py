"""Users come back after others: the same chats every time, and more of them than a worker holds."""

import pytest

from demo.client import Answer
from demo.dynamo.chats import NUM_TURNS, NUM_USERS, Chats


class Echo:
    """Answers with the number of messages."""

    def chat(self, messages, num_tokens):
        return Answer(str(len(messages)), ttft_s=1, prompt_tokens=10, cached_tokens=4)


@pytest.fixture
def held():
    chats = Chats()
    return chats, chats.hold(Echo(), lambda _: None)


def test_every_user_has_every_turn(held):
    _, turns = held
    expected = [(number, user) for number in range(NUM_TURNS) for user in range(NUM_USERS)]
    assert sorted((turn.number, turn.user) for turn in turns) == expected


def test_no_user_keeps_his_place_in_the_round(held):
    _, turns = held
    places = [[] for _ in range(NUM_USERS)]
    for place, turn in enumerate(turns):
        places[turn.user].append(place % 2)
    assert all(len(set(parities)) == 2 for parities in places)


def test_a_prompt_has_all_that_was_said(held):
    chats, turns = held
    assert {turn.answer.text for turn in turns if turn.number == 1} == {"4"}
    roles = [message["role"] for message in chats.messages[0]]
    assert roles == ["system", *["user", "assistant"] * NUM_TURNS]


def test_two_fleets_have_the_same_chats(held):
    other = Chats()
    assert other.hold(Echo(), lambda _: None) == held[1]
    assert other.messages == held[0].messages


def test_no_two_users_ask_the_same(held):
    texts = [
        message["content"]
        for said in held[0].messages
        for message in said
        if message["role"] != "assistant"
    ]
    assert len(set(texts)) == len(texts)
