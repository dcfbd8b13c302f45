//! Rows as bytes: every value with its type, numbers as the difference to the row before, texts that were there already
//! (ids, mostly) by their place.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

/// One value of a row, exactly as the engine has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'a> {
    /// Nothing.
    Null,
    /// A whole number.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// A number with a fraction.
    Real(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
}

impl Cell<'_> {
    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The number, where it is one.
    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            Self::Bool(b) => Some((*b).into()),
            _ => None,
        }
    }
}

const END: u8 = 0;
const TABLE: u8 = 1;
const ROW: u8 = 2;
const CHUNK: u8 = 3;
const AGAIN: u8 = 4;

const NULL: u8 = 0;
const INT: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BYTES: u8 = 4;
const FALSE: u8 = 5;
const TRUE: u8 = 6;
const KNOWN: u8 = 7;
const STEP: u8 = 8;

/// Texts between these lengths are remembered within a chunk, up to so many.
const REMEMBERED: std::ops::RangeInclusive<usize> = 12..=255;
const MOST_REMEMBERED: usize = 1 << 17;

/// Columns of a table, and tables of a frame, that are believed.
const MOST_COLUMNS: u64 = 10_000;

/// Puts rows into bytes.
pub struct Encoder<W> {
    out: W,
    tables: Vec<(String, Vec<i64>)>,
    at: usize,
    known: HashMap<Box<str>, u32>,
    bytes: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            tables: Vec::new(),
            at: 0,
            known: HashMap::new(),
            bytes: Vec::new(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    /// What follows has nothing to do with what came before: bounds what both sides remember.
    pub fn chunk(&mut self) -> io::Result<()> {
        self.known.clear();
        self.bytes.push(CHUNK);
        self.flush()
    }

    /// The rows that follow are of this table. A table has the same columns each time.
    pub fn table(&mut self, name: &str, columns: &[&str]) -> io::Result<()> {
        if let Some(at) = self.tables.iter().position(|(known, _)| known == name) {
            self.at = at;
            self.bytes.push(AGAIN);
            put_number(&mut self.bytes, at as u64);
            return self.flush();
        }
        self.bytes.push(TABLE);
        put_text(&mut self.bytes, name.as_bytes());
        put_number(&mut self.bytes, columns.len() as u64);
        for column in columns {
            put_text(&mut self.bytes, column.as_bytes());
        }
        self.at = self.tables.len();
        self.tables.push((name.to_owned(), vec![0; columns.len()]));
        self.flush()
    }

    /// A row of the table that was named last.
    pub fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        let Some((_, before)) = self.tables.get_mut(self.at) else {
            return Err(io::Error::other("a row of no table"));
        };
        if before.len() != cells.len() {
            return Err(io::Error::other("a row has other columns than its table"));
        }
        let bytes = &mut self.bytes;
        bytes.push(ROW);
        for (cell, before) in cells.iter().zip(before) {
            match cell {
                Cell::Null => bytes.push(NULL),
                Cell::Bool(b) => bytes.push(if *b { TRUE } else { FALSE }),
                Cell::Real(n) => {
                    bytes.push(REAL);
                    bytes.extend(n.to_bits().to_le_bytes());
                }
                Cell::Int(n) => {
                    let step = n.wrapping_sub(*before);
                    if zigzag(step) < zigzag(*n) {
                        bytes.push(STEP);
                        put_number(bytes, zigzag(step));
                    } else {
                        bytes.push(INT);
                        put_number(bytes, zigzag(*n));
                    }
                    *before = *n;
                }
                Cell::Bytes(value) => {
                    bytes.push(BYTES);
                    put_text(bytes, value);
                }
                Cell::Text(text) => {
                    if let Some(at) = self.known.get(&**text) {
                        bytes.push(KNOWN);
                        put_number(bytes, (*at).into());
                        continue;
                    }
                    if is_remembered(text, self.known.len()) {
                        let next = self.known.len() as u32;
                        self.known.insert((**text).into(), next);
                    }
                    bytes.push(TEXT);
                    put_text(bytes, text.as_bytes());
                }
            }
        }
        self.flush()
    }

    /// Says that nothing follows.
    pub fn end(mut self) -> io::Result<W> {
        self.bytes.push(END);
        self.flush()?;
        Ok(self.out)
    }
}

fn is_remembered(text: &str, known: usize) -> bool {
    REMEMBERED.contains(&text.len()) && known < MOST_REMEMBERED
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

fn put_number(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}

fn put_text(bytes: &mut Vec<u8>, text: &[u8]) {
    put_number(bytes, text.len() as u64);
    bytes.extend(text);
}

/// What stands in a frame, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A new chunk begins.
    Chunk,
    /// The rows that follow are of the table with this place in [`Decoder::table`].
    Table(usize),
    /// A row.
    Row(Vec<Cell<'static>>),
}

/// Reads rows out of bytes. Believes no length before it has seen what it is the length of.
pub struct Decoder<R> {
    from: R,
    tables: Vec<(String, Vec<String>, Vec<i64>)>,
    at: usize,
    known: Vec<Rc<str>>,
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

impl<R: Read> Decoder<R> {
    /// Reads from what [`Encoder`] wrote.
    pub fn new(from: R) -> Self {
        Self {
            from,
            tables: Vec::new(),
            at: 0,
            known: Vec::new(),
        }
    }

    /// Name and columns of a table that was met.
    pub fn table(&self, at: usize) -> Option<(&str, &[String])> {
        let (name, columns, _) = self.tables.get(at)?;
        Some((name, columns))
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> io::Result<u64> {
        let (mut n, mut shift) = (0, 0);
        loop {
            let byte = self.byte()?;
            if shift > 63 {
                return Err(nonsense("a number without an end"));
            }
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
            shift += 7;
        }
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        let mut bytes = Vec::new();
        (&mut self.from).take(length).read_to_end(&mut bytes)?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(nonsense("a text ends too early")),
        }
    }

    fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?).map_err(|_| nonsense("a text is not UTF-8"))
    }

    /// What comes next; `None` at the end.
    pub fn read(&mut self) -> io::Result<Option<Record>> {
        match self.byte()? {
            END => Ok(None),
            CHUNK => {
                self.known.clear();
                Ok(Some(Record::Chunk))
            }
            TABLE => {
                let name = self.text()?;
                let count = self.number()?;
                if count > MOST_COLUMNS || self.tables.len() as u64 > MOST_COLUMNS {
                    return Err(nonsense("too many columns"));
                }
                let columns: io::Result<Vec<String>> = (0..count).map(|_| self.text()).collect();
                let columns = columns?;
                self.at = self.tables.len();
                let before = vec![0; columns.len()];
                self.tables.push((name, columns, before));
                Ok(Some(Record::Table(self.at)))
            }
            AGAIN => {
                let at = usize::try_from(self.number()?).unwrap_or(usize::MAX);
                if at >= self.tables.len() {
                    return Err(nonsense("a table that was not named"));
                }
                self.at = at;
                Ok(Some(Record::Table(at)))
            }
            ROW => self.row().map(Some),
            _ => Err(nonsense("a record of an unknown kind")),
        }
    }

    fn row(&mut self) -> io::Result<Record> {
        let Some((_, columns, _)) = self.tables.get(self.at) else {
            return Err(nonsense("a row of no table"));
        };
        let mut cells = Vec::with_capacity(columns.len());
        for column in 0..columns.len() {
            cells.push(self.cell(column)?);
        }
        Ok(Record::Row(cells))
    }

    fn cell(&mut self, column: usize) -> io::Result<Cell<'static>> {
        Ok(match self.byte()? {
            NULL => Cell::Null,
            FALSE => Cell::Bool(false),
            TRUE => Cell::Bool(true),
            REAL => {
                let mut bits = [0; 8];
                self.from.read_exact(&mut bits)?;
                Cell::Real(f64::from_bits(u64::from_le_bytes(bits)))
            }
            BYTES => Cell::Bytes(self.bytes()?.into()),
            kind @ (INT | STEP) => {
                let n = unzigzag(self.number()?);
                let before = &mut self.tables[self.at].2[column];
                *before = if kind == STEP {
                    before.wrapping_add(n)
                } else {
                    n
                };
                Cell::Int(*before)
            }
            TEXT => {
                let text = self.text()?;
                if is_remembered(&text, self.known.len()) {
                    self.known.push(text.as_str().into());
                }
                Cell::Text(text.into())
            }
            KNOWN => {
                let at = usize::try_from(self.number()?).unwrap_or(usize::MAX);
                let text = self.known.get(at);
                let text = text.ok_or_else(|| nonsense("a text that was not there"))?;
                Cell::Text(text.to_string().into())
            }
            _ => return Err(nonsense("a value of an unknown type")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn any_cell(rng: &mut StdRng) -> Cell<'static> {
        match rng.random_range(0..9) {
            0 => Cell::Null,
            1 => Cell::Int(rng.random()),
            2 => Cell::Int([i64::MIN, i64::MAX, 0, -1][rng.random_range(0..4)]),
            3 => Cell::Bool(rng.random()),
            4 => Cell::Real(rng.random::<f64>() * 1e300),
            5 => Cell::Bytes(
                (0..rng.random_range(0..40))
                    .map(|_| rng.random())
                    .collect::<Vec<u8>>()
                    .into(),
            ),
            6 => Cell::Text("x".repeat(rng.random_range(0..400)).into()),
            7 => Cell::Text(format!("$event-{}:example.org", rng.random_range(0..20)).into()),
            _ => Cell::Text("\0 ü {\"a\": 1}".into()),
        }
    }

    #[test]
    fn what_is_put_in_comes_out() {
        for seed in 0..50 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let mut encoder = Encoder::new(Vec::new());
            let mut put = Vec::new();
            let mut width = 0;
            let tables = ["a", "b", "c"];
            for step in 0..200 {
                if step == 0 || rng.random_ratio(1, 20) {
                    let at = rng.random_range(0..3);
                    width = at + 1;
                    let columns = ["one", "two", "three"];
                    encoder
                        .table(tables[at], &columns[..width])
                        .expect("written");
                    put.push((tables[at], None));
                } else if rng.random_ratio(1, 20) {
                    encoder.chunk().expect("written");
                } else {
                    let row: Vec<Cell<'_>> = (0..width).map(|_| any_cell(rng)).collect();
                    encoder.row(&row).expect("written");
                    put.push(("", Some(row)));
                }
            }
            let bytes = encoder.end().expect("written");
            let mut decoder = Decoder::new(&bytes[..]);
            let mut got = Vec::new();
            while let Some(record) = decoder.read().expect("whole") {
                match record {
                    Record::Chunk => {}
                    Record::Table(at) => {
                        let name = decoder.table(at).expect("named").0;
                        let name = tables.iter().find(|table| **table == name);
                        got.push((*name.expect("ours"), None));
                    }
                    Record::Row(row) => got.push(("", Some(row))),
                }
            }
            assert_eq!(put, got, "seed {seed}");
            // Whatever is cut off or changed, nothing panics and nothing takes more memory than there are bytes.
            for _ in 0..200 {
                let mut bytes = bytes.clone();
                let at = rng.random_range(0..bytes.len());
                match rng.random() {
                    true => bytes.truncate(at),
                    false => bytes[at] ^= rng.random_range(1..=255u8),
                }
                let mut decoder = Decoder::new(&bytes[..]);
                while let Ok(Some(_)) = decoder.read() {}
            }
        }
    }
}
