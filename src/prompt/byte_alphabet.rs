//! GPT-2's alphabet: a character for each of the 256 bytes, so that byte-level pieces are text.
//!
//! Printable bytes stand for themselves, the other 68 are numbered from U+0100. Used to decode pieces and to make
//! vocabularies.

use std::sync::LazyLock;

static BYTE_OF_CHAR: LazyLock<Vec<Option<u8>>> = LazyLock::new(|| {
    let mut table = vec![None; 0x144];
    for byte in 0..=u8::MAX {
        table[char_of_byte(byte) as usize] = Some(byte);
    }
    table
});

/// The byte that `char` stands for in a byte-level piece.
pub(crate) fn byte_of_char(char: char) -> Option<u8> {
    BYTE_OF_CHAR.get(char as usize).copied().flatten()
}

/// The character that stands for `byte` in a byte-level piece.
pub(crate) fn char_of_byte(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_printable(byte) {
        return char::from(byte);
    }
    let num_before = (0..byte).filter(|&other| !is_printable(other)).count();
    u32::try_from(num_before)
        .ok()
        .and_then(|num| char::from_u32(256 + num))
        .expect("at most 68 bytes are not printable")
}
