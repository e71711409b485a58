"""Which examples an iteration sees: shuffled epochs, resumable at any position."""

from hypothesis import given, strategies as st
import pytest

from gdsd_jax.runs.data import ExampleStream

EXAMPLES = [{"question": str(i)} for i in range(10)]


@given(st.integers(1, 30), st.integers(0, 2**32), st.integers(0, 5))
def test_every_epoch_holds_each_example_once(size, seed, epoch):
  stream = ExampleStream(range(size), seed)
  stream.position = epoch * size
  assert sorted(stream.take(size)) == list(range(size))


@given(st.integers(1, 7), st.lists(st.integers(0, 20), max_size=6), st.integers(0, 2**32))
def test_how_many_are_taken_at_a_time_does_not_change_the_order(size, counts, seed):
  in_parts, at_once = ExampleStream(range(size), seed), ExampleStream(range(size), seed)
  assert sum((in_parts.take(count) for count in counts), []) == at_once.take(sum(counts))


@given(st.integers(1, 7), st.integers(0, 30), st.integers(1, 30))
def test_a_stream_set_to_a_position_goes_on_from_there(size, position, count):
  first, resumed = ExampleStream(range(size), 3), ExampleStream(range(size), 3)
  first.take(position)
  resumed.position = position
  assert resumed.take(count) == first.take(count)


def test_position_counts_examples_over_all_epochs():
  stream = ExampleStream(EXAMPLES, 0)
  stream.take(7)
  stream.take(26)
  assert stream.position == 33


def test_one_take_crosses_several_epochs():
  taken = ExampleStream(EXAMPLES, 0).take(35)
  assert sorted(taken.count(example) for example in EXAMPLES) == [3] * 5 + [4] * 5


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_seeds_and_epochs_have_orders_of_their_own(other):
  first, second = ExampleStream(EXAMPLES, 0), ExampleStream(EXAMPLES, other.get("seed", 0))
  second.position = len(EXAMPLES) * other.get("epoch", 0)
  assert first.take(len(EXAMPLES)) != second.take(len(EXAMPLES))


def test_the_same_seed_gives_the_same_order():
  assert ExampleStream(EXAMPLES, 5).take(25) == ExampleStream(EXAMPLES, 5).take(25)
