"""Languages that put no spaces between words."""

from __future__ import annotations

import pytest

from hfcap.metrics.shared.scripts import is_latin, unspaced_language


@pytest.mark.parametrize(
    ("captions", "language"),
    [
        (["一个男人在海浪上冲浪", "两只猫在红色沙发上睡觉"], "Chinese"),
        (["海でサーフィンをしている男性", "草の上を走る犬"], "Japanese"),
        (["สุนัขวิ่งอยู่บนสนามหญ้า", "ผู้ชายเล่นเซิร์ฟบนคลื่น"], "Thai"),
        (["ໝາກຳລັງແລ່ນຢູ່ເທິງຫຍ້າ"], "Lao"),
        (["ឆ្កែមួយកំពុងរត់លើស្មៅ"], "Khmer"),
        (["ခွေးတစ်ကောင်မြက်ခင်းပေါ်တွင်ပြေးနေသည်"], "Burmese"),
        # Words put apart by a segmenter.
        (["一个 男人 在 海浪 上 冲浪"], None),
        (["海 で サーフィン を し て いる 男性"], None),
        (["สุนัข วิ่ง อยู่ บน สนามหญ้า"], None),
        # Languages that have spaces, and a word of another among them.
        (["a man surfs on a wave"], None),
        (["강아지가 잔디밭에서 뛰고 있다"], None),
        (["собака бежит по траве"], None),
        (["a sign that says 一个男人在海浪上冲浪", "a dog runs on the grass", "two cats sleep on a sofa"], None),
        ([], None),
    ],
)
def test_which_language_has_no_spaces(captions: list[str], language: str | None) -> None:
    assert unspaced_language(captions) == language


def test_english_is_latin() -> None:
    assert is_latin(["a café", "мир"]) and not is_latin(["собака", "a"])
