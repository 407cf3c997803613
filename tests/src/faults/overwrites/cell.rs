//! Records that say of every eight bytes what they are: file, cell, sequence number, place and checksum. Pure.
//!
//! A cell is a fixed range of a file that is overwritten as a whole. It is smaller than a block, a
//! block, or lies across two; a reader judges the part in each block by itself, because a write
//! that nobody synced may have reached one block and not the other.

use std::fmt;

/// What the store seals and replaces as one.
pub const BLOCK_BYTES: usize = 4096;

const WORD_BYTES: usize = 8;

/// Bits of a word that are its checksum; the others are the sequence number.
const CHECK_BITS: u32 = 40;

/// Number of a write to one cell, from 1; [`Seq::NONE`] is no write at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seq(pub u32);

impl Seq {
    pub const NONE: Self = Self(0);
}

/// Cells of a file, all of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tells its records from those of other files.
    pub file: u32,
    pub cells: usize,
    /// A multiple of eight.
    pub cell_bytes: usize,
}

impl Shape {
    #[must_use]
    pub fn file_bytes(self) -> usize {
        self.cells * self.cell_bytes
    }

    #[must_use]
    pub fn offset(self, cell: usize) -> usize {
        cell * self.cell_bytes
    }

    /// What is written for this sequence number.
    #[must_use]
    pub fn record(self, cell: usize, seq: Seq) -> Vec<u8> {
        (0..self.cell_bytes / WORD_BYTES)
            .flat_map(|place| self.word(cell, seq, place).to_le_bytes())
            .collect()
    }

    fn word(self, cell: usize, seq: Seq, place: usize) -> u64 {
        let mut z = u64::from(self.file) << 48 ^ (cell as u64) << 24 ^ place as u64;
        z = z.wrapping_add(u64::from(seq.0).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u64::from(seq.0) << CHECK_BITS | (z ^ (z >> 31)) & ((1 << CHECK_BITS) - 1)
    }

    /// What each cell of a file's bytes holds, block by block.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Vec<Vec<Part>> {
        (0..self.cells).map(|cell| self.decode_cell(cell, bytes)).collect()
    }

    fn decode_cell(self, cell: usize, bytes: &[u8]) -> Vec<Part> {
        let (start, end) = (self.offset(cell), self.offset(cell + 1));
        let mut parts = Vec::new();
        let mut from = start;
        while from < end {
            let to = end.min((from / BLOCK_BYTES + 1) * BLOCK_BYTES);
            let found = &bytes[from.min(bytes.len())..to.min(bytes.len())];
            parts.push(self.decode_part(cell, (from - start) / WORD_BYTES, found, to - from));
            from = to;
        }
        parts
    }

    fn decode_part(self, cell: usize, first_place: usize, found: &[u8], wanted_bytes: usize) -> Part {
        if found.is_empty() {
            return Part::Absent;
        }
        if found.len() < wanted_bytes {
            return Part::Torn(format!("{} of {wanted_bytes} bytes, then the end", found.len()));
        }
        if found.iter().all(|byte| *byte == 0) {
            return Part::Zero;
        }
        let words: Vec<u64> = found
            .chunks_exact(WORD_BYTES)
            .map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
            .collect();
        let seq_of = |(place, word): (usize, &u64)| {
            let seq = Seq(u32::try_from(word >> CHECK_BITS).unwrap_or_default());
            (self.word(cell, seq, first_place + place) == *word).then_some(seq)
        };
        let seqs: Vec<Option<Seq>> = words.iter().enumerate().map(seq_of).collect();
        match seqs.first().copied().flatten() {
            Some(seq) if seqs.iter().all(|other| *other == Some(seq)) => Part::Whole(seq),
            _ => Part::Torn(runs(&seqs)),
        }
    }
}

/// What a part of a cell within one block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The file ends before it.
    Absent,
    Zero,
    Whole(Seq),
    /// Not one record: what instead, in words.
    Torn(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "-"),
            Self::Zero => write!(f, "z"),
            Self::Whole(seq) => write!(f, "{}", seq.0),
            Self::Torn(what) => write!(f, "!{what}"),
        }
    }
}

impl Part {
    /// The inverse of `Display`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "-" => Some(Self::Absent),
            "z" => Some(Self::Zero),
            _ => match text.strip_prefix('!') {
                Some(what) => Some(Self::Torn(what.to_owned())),
                None => text.parse().ok().map(|seq| Self::Whole(Seq(seq))),
            },
        }
    }
}

/// A line of text for all cells, and back. Torn parts are in words without these separators.
#[must_use]
pub fn to_line(cells: &[Vec<Part>]) -> String {
    let cell = |parts: &Vec<Part>| {
        let parts: Vec<String> = parts.iter().map(Part::to_string).collect();
        parts.join("+")
    };
    cells.iter().map(cell).collect::<Vec<_>>().join(";")
}

/// `None`: that is no such line.
#[must_use]
pub fn from_line(line: &str) -> Option<Vec<Vec<Part>>> {
    line.split(';')
        .map(|cell| cell.split('+').map(Part::parse).collect())
        .collect()
}

/// Runs of words of the same number, such as `7 of 4, 505 of 5`.
fn runs(seqs: &[Option<Seq>]) -> String {
    let name = |seq: Option<Seq>| seq.map_or_else(|| "nobody".to_owned(), |seq| seq.0.to_string());
    let texts: Vec<String> = seqs
        .chunk_by(|one, other| one == other)
        .take(6)
        .map(|run| format!("{} words of {}", run.len(), name(run[0])))
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        file: 3,
        cells: 6,
        cell_bytes: 1000,
    };

    fn file(seqs: [u32; 6]) -> Vec<u8> {
        (0..6).flat_map(|cell| SHAPE.record(cell, Seq(seqs[cell]))).collect()
    }

    #[test]
    fn a_record_is_found_again_and_one_across_two_blocks_has_two_parts() {
        let cells = SHAPE.decode(&file([1, 2, 3, 4, 5, 6]));
        assert_eq!(cells[0], vec![Part::Whole(Seq(1))]);
        assert_eq!(cells[4], vec![Part::Whole(Seq(5)), Part::Whole(Seq(5))]);
        assert_eq!(cells[5], vec![Part::Whole(Seq(6))]);
    }

    #[test]
    fn zeros_the_end_mixtures_and_strangers_are_told_apart() {
        let mut bytes = file([1, 2, 3, 4, 5, 6]);
        bytes.truncate(4500);
        bytes[1000..2000].fill(0);
        bytes[2000..2008].copy_from_slice(&SHAPE.record(2, Seq(9))[..8]);
        let other = Shape { file: 4, ..SHAPE };
        bytes[3000..4000].copy_from_slice(&other.record(3, Seq(4)));
        let cells = SHAPE.decode(&bytes);
        assert_eq!(cells[1], vec![Part::Zero]);
        assert_eq!(cells[2], vec![Part::Torn("1 words of 9, 124 words of 3".to_owned())]);
        assert_eq!(cells[3], vec![Part::Torn("125 words of nobody".to_owned())]);
        assert_eq!(cells[4][0], Part::Whole(Seq(5)));
        assert!(matches!(&cells[4][1], Part::Torn(what) if what == "404 of 904 bytes, then the end"));
        assert_eq!(cells[5], vec![Part::Absent]);
    }

    #[test]
    fn a_record_of_another_cell_is_nobodys() {
        let mut bytes = file([1, 1, 1, 1, 1, 1]);
        bytes.copy_within(0..1000, 2000);
        assert!(matches!(&SHAPE.decode(&bytes)[2][0], Part::Torn(_)));
    }

    #[test]
    fn lines_say_the_same() {
        let mut bytes = file([7, 0, 3, 4, 5, 6]);
        bytes.truncate(4500);
        bytes[1000..2000].fill(0);
        bytes[2000..2008].fill(1);
        let cells = SHAPE.decode(&bytes);
        assert_eq!(from_line(&to_line(&cells)), Some(cells));
        assert_eq!(from_line("4;x"), None);
    }
}
