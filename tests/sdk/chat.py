"""What users do with OpenAI's Python SDK, against a running server: chat.py BASE_URL API_KEY MODEL."""

import sys
from concurrent.futures import ThreadPoolExecutor

import openai

BASE_URL, API_KEY, MODEL = sys.argv[1:]
client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=60)
QUESTION = [{"role": "user", "content": "Hello! Who are you?"}]


def test_models():
    models = [model.id for model in client.models.list()]
    assert models == [MODEL], models
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat_streamed_equals_chat():
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=32)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=32, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    finished = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert finished == [choice.finish_reason], finished


def test_several_choices_seed_and_logprobs():
    def ask():
        return client.chat.completions.create(
            model=MODEL, messages=QUESTION, n=3, seed=7, temperature=1, max_tokens=12, logprobs=True, top_logprobs=2
        )

    first, second = ask(), ask()
    assert [c.index for c in first.choices] == [0, 1, 2]
    assert [c.message.content for c in first.choices] == [c.message.content for c in second.choices]
    for choice in first.choices:
        for token in choice.logprobs.content:
            assert token.logprob <= 0 and len(token.top_logprobs) == 2
            assert bytes(token.bytes).decode(errors="replace") is not None


def test_completions_with_token_ids():
    answer = client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=4, temperature=0, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert answer.usage.prompt_tokens == 3
    assert len(choice.logprobs.tokens) == 3 + answer.usage.completion_tokens
    assert choice.logprobs.token_logprobs[0] is None
    assert "".join(choice.logprobs.tokens) == choice.text or "\ufffd" in choice.text


def test_second_turn_is_cached():
    messages = [{"role": "user", "content": "Please remember this text. " + "The quick brown fox runs over the hill. " * 20}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=16)
    messages += [
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": "Thank you!"},
    ]
    again = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=16)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached > 0.8 * answer.usage.prompt_tokens, (cached, answer.usage)


def test_errors_have_their_class():
    for wanted, call in [
        (openai.NotFoundError, lambda: client.chat.completions.create(model="no-such-model", messages=QUESTION)),
        (openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)),
        (openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=[])),
        (openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list()),
    ]:
        try:
            call()
        except wanted as error:
            assert error.body["message"] and error.request_id, error.body
        else:
            raise AssertionError(f"no {wanted.__name__}")


def test_many_at_once():
    def ask(i):
        messages = [{"role": "user", "content": f"Repeat: blue {i} river"}]
        return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=16)

    with ThreadPoolExecutor(24) as pool:
        together = [answer.choices[0].message.content for answer in pool.map(ask, range(24))]
    alone = [ask(i).choices[0].message.content for i in range(24)]
    assert together == alone


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print("ok", name)
