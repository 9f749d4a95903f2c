"""Precedence without any engine: what wins, and what shines through."""

from klguard.engines.layers import flatten, verdict, walk, without
from klguard.settings import Absent, Default, Known, Layer, LayerKind, OneOf, Reason, Unknown, members

LIBRARY = Default(50, "transformers")
SPLAT = Unknown(Reason.INVISIBLE_CALL, "settings()")


def layer(rest: Unknown | None = None, **values) -> Layer:
    return Layer(LayerKind.KWARGS, values, rest)


def test_the_strongest_layer_that_has_a_setting_wins():
    assert walk("top_k", [layer(), layer(top_k=Known(0)), layer(top_k=Known(20))], LIBRARY) == Known(0)


def test_nobody_wrote_it_so_the_library_decides():
    assert walk("top_k", [layer(), layer(top_p=Known(1.0))], LIBRARY) == LIBRARY


def test_absent_lets_the_layer_below_through():
    assert walk("top_k", [layer(top_k=Absent()), layer(top_k=Known(20))], LIBRARY) == Known(20)


def test_perhaps_absent_joins_what_lies_below():
    written = OneOf((Known(0), Absent()))
    assert walk("top_k", [layer(top_k=written)], LIBRARY) == OneOf((Known(0), LIBRARY))


def test_every_way_is_written_so_nothing_shines_through():
    written = OneOf((Known(0), Known(10)))
    assert walk("top_k", [layer(top_k=written), layer(top_k=Known(20))], LIBRARY) == written


def test_unseen_names_join_what_lies_below():
    assert walk("top_k", [layer(SPLAT)], LIBRARY) == OneOf((SPLAT, LIBRARY))


def test_unseen_names_do_not_touch_a_setting_that_is_written_beside_them_or_above():
    assert walk("top_k", [layer(SPLAT, top_k=Known(0))], LIBRARY) == Known(0)
    assert walk("top_k", [layer(top_k=Known(0)), layer(SPLAT)], LIBRARY) == Known(0)


def test_the_effective_value_is_never_absent():
    for written in (Absent(), OneOf((Known(1), Absent())), OneOf((SPLAT, Absent()))):
        value = walk("top_k", [layer(top_k=written)], LIBRARY)
        assert not any(isinstance(member, Absent) for member in members(value))


def test_more_possibilities_than_can_be_followed_are_unknown():
    layers = [layer(top_k=OneOf((Known(n), Known(n + 1), Absent()))) for n in range(0, 12, 2)]
    assert walk("top_k", layers, LIBRARY).reason is Reason.BUDGET


def test_a_verdict_is_true_false_or_open():
    assert verdict(Known(0), lambda v: v == 0) is True
    assert verdict(OneOf((Known(0), Default(0, "x"))), lambda v: v == 0) is True
    assert verdict(OneOf((Known(1), Known(2))), lambda v: v == 0) is False
    assert verdict(OneOf((Known(0), Known(2))), lambda v: v == 0) is None
    assert verdict(SPLAT, lambda v: v == 0) is None
    assert verdict(None, lambda v: v == 0) is False


def test_without_makes_certain_members_absent_and_keeps_the_others():
    value = OneOf((Known(None), Known(3), SPLAT))
    assert without(value, lambda v: v is None) == OneOf((Absent(), Known(3), SPLAT))


def test_entries_of_a_dict_win_over_fields_of_the_same_name():
    extra = Known({"top_k": 5, "min_p": 0.1})
    flat = flatten(layer(top_k=Known(0), generation_kwargs=extra), ["generation_kwargs"])
    assert flat.values == {"top_k": Known(5), "min_p": Known(0.1)}
    assert flat.rest is None


def test_a_dict_that_is_there_on_one_path_only():
    perhaps = OneOf((Known({"top_k": 5}), Known(None)))
    flat = flatten(layer(top_k=Known(0), generation_kwargs=perhaps), ["generation_kwargs"])
    assert flat.values["top_k"] == OneOf((Known(5), Known(0)))
    alone = flatten(layer(generation_kwargs=perhaps), ["generation_kwargs"])
    assert alone.values["top_k"] == OneOf((Known(5), Absent()))


def test_a_dict_that_cannot_be_seen_may_set_any_name():
    flat = flatten(layer(top_k=Known(0), generation_kwargs=SPLAT), ["generation_kwargs"])
    assert flat.values["top_k"] == OneOf((Known(0), SPLAT))
    assert flat.rest == SPLAT


def test_a_dict_that_may_be_unseen_still_shows_what_it_may_be():
    either = OneOf((Known({"top_k": 5}), SPLAT))
    flat = flatten(layer(generation_kwargs=either), ["generation_kwargs"])
    assert flat.values["top_k"] == OneOf((Known(5), SPLAT))
    assert flat.rest == SPLAT


def test_entries_may_be_values_themselves():
    inner = {"top_k": OneOf((Known(0), Known(50)))}
    assert flatten(layer(gen_kwargs=Known(inner)), ["gen_kwargs"]).values["top_k"] == inner["top_k"]
