"""Breaking and cutting words to a width."""

from dualview.plotting.style import shorten, text_width, wrap

SIZE = 9.0


def test_short_words_stay_whole():
    assert shorten("cat", 5.0, SIZE) == "cat"


def test_cut_words_fit_and_are_as_long_as_they_can_be():
    words = "thequickbrownfoxjumpsoverthelazydog"
    for room in (0.4, 0.8, 1.3):
        cut = shorten(words, room, SIZE)
        assert cut.endswith("…") and text_width(cut, SIZE) <= room
        longer = words[: len(cut)] + "…"
        assert text_width(longer, SIZE) > room


def test_lines_break_between_words_and_keep_every_word():
    words = "the quick brown fox jumps over the lazy dog"
    lines = wrap(words, 1.0, SIZE, 20)
    assert " ".join(lines) == words
    assert len(lines) > 1 and all(text_width(line, SIZE) <= 1.0 for line in lines)


def test_a_word_longer_than_a_line_is_broken():
    lines = wrap("x" * 100, 1.0, SIZE, 20)
    assert "".join(lines) == "x" * 100
    assert all(text_width(line, SIZE) <= 1.0 for line in lines)


def test_what_exceeds_the_lines_is_cut_visibly():
    lines = wrap("one two three four five six seven", 0.6, SIZE, 2)
    assert len(lines) == 2 and lines[1].endswith("…")
    assert wrap("one\ntwo\nthree", 5.0, SIZE, 2) == ["one", "two three…"]


def test_narrow_spaces_keep_a_number_and_its_unit_together():
    words, rooms = "about 12.5\u202f% of it", (0.6, 0.7, 0.8, 0.9)
    together = [wrap(words, room, SIZE, 20) for room in rooms]
    assert all(("12.5" in line) == ("%" in line) for lines in together for line in lines)
    assert any("about 12.5" in wrap(words.replace("\u202f", " "), room, SIZE, 20) for room in rooms)


def test_paragraphs_stay_apart():
    assert wrap("one\n  two   three\n\n", 5.0, SIZE, 5) == ["one", "two three"]
