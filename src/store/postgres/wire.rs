//! Values on their way to the server and back. What a parameter is, the server decides by where it stands; so a number
//! goes as whatever number is wanted, and a text as whatever kind of text.

use std::fmt;

use bytes::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::Value;

type Oops = Box<dyn std::error::Error + Sync + Send>;

/// A bound value on its way to the server.
pub(super) struct Bound<'a>(pub(super) Value<'a>);

/// Without the value: the driver puts this into its log, and one of them is somebody's access token.
impl fmt::Debug for Bound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl ToSql for Bound<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Oops> {
        match (self.0, kind) {
            (Value::Null, _) => return Ok(IsNull::Yes),
            (Value::Int(n), &Type::BOOL) => (n != 0).to_sql(kind, out)?,
            (Value::Int(n), &Type::INT2) => i16::try_from(n)?.to_sql(kind, out)?,
            (Value::Int(n), &Type::INT4) => i32::try_from(n)?.to_sql(kind, out)?,
            (Value::Int(n), &Type::FLOAT8) => (n as f64).to_sql(kind, out)?,
            (Value::Int(n), &Type::INT8) => n.to_sql(kind, out)?,
            (Value::Bool(b), &Type::INT2) => i16::from(b).to_sql(kind, out)?,
            (Value::Bool(b), &Type::INT4) => i32::from(b).to_sql(kind, out)?,
            (Value::Bool(b), &Type::INT8) => i64::from(b).to_sql(kind, out)?,
            (Value::Bool(b), &Type::BOOL) => b.to_sql(kind, out)?,
            (Value::Real(n), &Type::FLOAT8) => n.to_sql(kind, out)?,
            (Value::Text(text), kind) if is_text(kind) => {
                if *kind == Type::JSONB {
                    out.extend_from_slice(&[1]);
                }
                out.extend_from_slice(text.as_bytes());
                IsNull::No
            }
            (Value::Bytes(bytes), kind) if *kind == Type::BYTEA || is_text(kind) => {
                out.extend_from_slice(bytes);
                IsNull::No
            }
            (value, kind) => {
                let what = match value {
                    Value::Int(_) => "a number",
                    Value::Bool(_) => "a boolean",
                    Value::Real(_) => "a fraction",
                    Value::Text(_) => "a text",
                    _ => "bytes",
                };
                return Err(format!("{what} was bound where {kind} is wanted").into());
            }
        };
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn is_text(kind: &Type) -> bool {
    [
        Type::TEXT,
        Type::VARCHAR,
        Type::BPCHAR,
        Type::NAME,
        Type::UNKNOWN,
        Type::JSON,
        Type::JSONB,
    ]
    .contains(kind)
}

/// A column of an answer.
pub(super) struct Found<'a>(pub(super) Value<'a>);

impl<'a> FromSql<'a> for Found<'a> {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Oops> {
        Ok(Self(match *kind {
            Type::BOOL => Value::Bool(bool::from_sql(kind, raw)?),
            Type::INT2 => Value::Int(i16::from_sql(kind, raw)?.into()),
            Type::INT4 => Value::Int(i32::from_sql(kind, raw)?.into()),
            Type::INT8 => Value::Int(i64::from_sql(kind, raw)?),
            Type::OID => Value::Int(u32::from_sql(kind, raw)?.into()),
            Type::FLOAT4 => Value::Real(f32::from_sql(kind, raw)?.into()),
            Type::FLOAT8 => Value::Real(f64::from_sql(kind, raw)?),
            Type::NUMERIC => numeric(raw)?,
            Type::BYTEA => Value::Bytes(raw),
            ref text if is_text(text) => Value::Text(std::str::from_utf8(raw)?),
            _ => Value::Bytes(raw),
        }))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Oops> {
        Ok(Self(Value::Null))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A number of any length, as a sum of whole numbers is one: digits to the base of 10,000, the first of them standing
/// for `weight` powers of it.
fn numeric(raw: &[u8]) -> Result<Value<'static>, Oops> {
    let mut words = raw
        .chunks_exact(2)
        .map(|b| i16::from_be_bytes([b[0], b[1]]));
    let mut next = || words.next().ok_or("a number that is cut short");
    let (digits, weight, sign, _) = (next()?, next()?, next()?, next()?);
    let negative = match sign {
        0 => false,
        0x4000 => true,
        _ => return Err("not a number".into()),
    };
    let (mut whole, mut real, mut fits) = (0_i64, 0.0, true);
    for at in 0..digits.max(weight.saturating_add(1)) {
        let digit = if at < digits { next()? } else { 0 };
        real += f64::from(digit) * 10_000_f64.powi(i32::from(weight) - i32::from(at));
        if at > weight {
            fits &= digit == 0;
            continue;
        }
        match whole
            .checked_mul(10_000)
            .and_then(|n| n.checked_add(i64::from(digit)))
        {
            Some(n) => whole = n,
            None => fits = false,
        }
    }
    Ok(match (fits, negative) {
        (true, false) => Value::Int(whole),
        (true, true) => Value::Int(-whole),
        (false, false) => Value::Real(real),
        (false, true) => Value::Real(-real),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[i16]) -> Value<'static> {
        let raw: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        numeric(&raw).expect("a number")
    }

    #[test]
    fn sums_of_whole_numbers_are_whole_numbers() {
        assert_eq!(of(&[0, 0, 0, 0]), Value::Int(0));
        assert_eq!(of(&[1, 0, 0, 0, 42]), Value::Int(42));
        assert_eq!(of(&[1, 1, 0x4000, 0, 7]), Value::Int(-70_000));
        assert_eq!(of(&[3, 2, 0, 0, 1, 2, 3]), Value::Int(100_020_003));
        assert_eq!(of(&[2, 0, 0, 1, 1, 5000]), Value::Real(1.5));
    }
}
