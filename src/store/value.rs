//! What statements bind and rows hold, whichever engine answers.

use std::rc::Rc;

use crate::archive::Cell;
use crate::error::StoreError;

/// One value, borrowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Nothing.
    Null,
    /// A whole number.
    Int(i64),
    /// True or false; on SQLite an integer.
    Bool(bool),
    /// A number with a fraction.
    Real(f64),
    /// A text.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// What a statement can bind.
pub trait Bind {
    /// The value, as engines take it.
    fn value(&self) -> Value<'_>;
}

/// What a statement binds: made by `params!`.
pub type Params<'a> = &'a [&'a dyn Bind];

/// Values for a statement, `$1` first.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$(&$value as &dyn $crate::store::value::Bind),*] as $crate::store::value::Params<'_>
    };
}
pub(crate) use params;

impl Bind for i64 {
    fn value(&self) -> Value<'_> {
        Value::Int(*self)
    }
}

impl Bind for bool {
    fn value(&self) -> Value<'_> {
        Value::Bool(*self)
    }
}

impl Bind for str {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Bind for String {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Bind for Vec<u8> {
    fn value(&self) -> Value<'_> {
        Value::Bytes(self)
    }
}

impl Bind for Cell<'_> {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Int(n) => Value::Int(*n),
            Self::Bool(b) => Value::Bool(*b),
            Self::Real(n) => Value::Real(*n),
            Self::Text(text) => Value::Text(text),
            Self::Bytes(bytes) => Value::Bytes(bytes),
        }
    }
}

impl<T: Bind + ?Sized> Bind for &T {
    fn value(&self) -> Value<'_> {
        (**self).value()
    }
}

impl<T: Bind> Bind for Option<T> {
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, Bind::value)
    }
}

/// What a column can be read as.
pub trait Read: Sized {
    /// What it is called in an error.
    const NAME: &'static str;
    /// The value as this type; `None` when it is of another.
    fn read(value: Value<'_>) -> Option<Self>;
}

impl Read for i64 {
    const NAME: &'static str = "a number";
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Int(n) => Some(n),
            Value::Bool(b) => Some(b.into()),
            _ => None,
        }
    }
}

impl Read for bool {
    const NAME: &'static str = "true or false";
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Bool(b) => Some(b),
            Value::Int(n) => Some(n != 0),
            _ => None,
        }
    }
}

/// M-93: a column of SQLite holds what was put in, and bytes that are a text are read as it.
fn text_of(value: Value<'_>) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

impl Read for String {
    const NAME: &'static str = "a text";
    fn read(value: Value<'_>) -> Option<Self> {
        text_of(value).map(str::to_owned)
    }
}

/// A JSON text. A column of SQLite holds what was put into it, and bytes are JSON as well as text is; Synapse reads both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json(pub String);

impl Read for Json {
    const NAME: &'static str = "JSON";
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Text(text) => Some(Self(text.to_owned())),
            Value::Bytes(bytes) => Some(Self(std::str::from_utf8(bytes).ok()?.to_owned())),
            _ => None,
        }
    }
}

impl Read for Rc<str> {
    const NAME: &'static str = "a text";
    fn read(value: Value<'_>) -> Option<Self> {
        text_of(value).map(Rc::from)
    }
}

impl Read for Vec<u8> {
    const NAME: &'static str = "bytes";
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Bytes(bytes) => Some(bytes.to_owned()),
            Value::Text(text) => Some(text.as_bytes().to_owned()),
            _ => None,
        }
    }
}

impl<T: Read> Read for Option<T> {
    const NAME: &'static str = T::NAME;
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::read(value).map(Some),
        }
    }
}

/// What reading a row answers.
pub type RowResult<T> = Result<T, StoreError>;

/// How a column is named: by its place, from 0.
pub trait Column {
    /// The place.
    fn place(self) -> usize;
}

impl Column for usize {
    fn place(self) -> usize {
        self
    }
}

/// A row of an answer.
pub struct Row<'r>(pub(super) Of<'r>);

/// Whose row it is.
pub(super) enum Of<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    #[cfg(feature = "postgres")]
    Postgres(&'r postgres::Row),
}

impl Row<'_> {
    /// A time of a column. Where something else than a number stands there, nobody knows it: SQLite holds what was put in.
    pub fn stamp(&self, at: usize) -> Option<i64> {
        match self.value(at) {
            Ok(Value::Int(stamp)) => Some(stamp),
            Ok(Value::Real(stamp)) => Some(stamp as i64),
            _ => None,
        }
    }

    /// A column as the type that is asked for.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn get<C: Column, T: Read>(&self, column: C) -> RowResult<T> {
        let at = column.place();
        T::read(self.value(at)?).ok_or(StoreError::Column {
            at,
            wanted: T::NAME,
        })
    }

    /// A text of a column, where it stands.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn text(&self, at: usize) -> RowResult<&str> {
        let wanted = String::NAME;
        text_of(self.value(at)?).ok_or(StoreError::Column { at, wanted })
    }

    /// A column as it is.
    pub fn value(&self, at: usize) -> RowResult<Value<'_>> {
        match &self.0 {
            Of::Sqlite(row) => super::sqlite::value(row, at),
            #[cfg(feature = "postgres")]
            Of::Postgres(row) => super::postgres::value(row, at),
        }
    }
}
