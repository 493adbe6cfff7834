//! The size rules of one tensor: what its shape and type ask for, and what it carries.
//!
//! The same rules judge a tensor twice: while it streams past in [`super::scan`], before anything
//! is decoded, and once more when it has been decoded.

use lithe::names::reason;

use super::budget::Budget;
use super::refusal::{Refusal, quoted};
use super::{DataType, TensorProto};

/// What a tensor says about itself, without its elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name; empty inside attributes.
    pub name: String,
    /// Its element type, as a [`DataType`].
    pub data_type: i32,
    /// Its dimensions.
    pub dims: Vec<i64>,
    /// Bytes of raw data.
    pub raw: u64,
    /// Numbers in each typed field: float, int32, int64, double, uint64.
    pub typed: [u64; 5],
    /// Strings.
    pub strings: u64,
    /// Whether it says that its data lie in another file.
    pub external: bool,
    /// Where they lie: key and value.
    pub entries: Vec<(String, String)>,
}

/// The index of each typed field in [`Facts::typed`].
pub const FLOAT: usize = 0;
/// Also carries every integer of at most 32 bits and the small floats.
pub const INT32: usize = 1;
/// 64-bit signed integers.
pub const INT64: usize = 2;
/// 64-bit floats.
pub const DOUBLE: usize = 3;
/// 32-bit and 64-bit unsigned integers.
pub const UINT64: usize = 4;

/// Data that lie in another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The file, relative to the model's directory.
    pub location: String,
    /// Where the data begin.
    pub offset: u64,
    /// Their length in bytes.
    pub length: u64,
}

/// Bits of one element; `None` for strings and unknown types.
pub fn bits(data_type: i32) -> Option<u64> {
    use DataType as D;
    Some(match DataType::try_from(data_type).ok()? {
        D::Undefined | D::String => return None,
        D::Uint2 | D::Int2 => 2,
        D::Uint4 | D::Int4 | D::Float4e2m1 => 4,
        D::Uint8 | D::Int8 | D::Bool => 8,
        D::Float8e4m3fn | D::Float8e4m3fnuz | D::Float8e5m2 | D::Float8e5m2fnuz | D::Float8e8m0 => {
            8
        }
        D::Uint16 | D::Int16 | D::Float16 | D::Bfloat16 => 16,
        D::Float | D::Int32 | D::Uint32 => 32,
        D::Int64 | D::Uint64 | D::Double | D::Complex64 => 64,
        D::Complex128 => 128,
    })
}

/// The typed field that carries elements of `data_type`, and how many of its numbers `count`
/// elements take.
fn carrier(data_type: i32, count: u64) -> Option<(usize, u64)> {
    use DataType as D;
    Some(match DataType::try_from(data_type).ok()? {
        D::Undefined | D::String => return None,
        D::Float => (FLOAT, count),
        D::Complex64 => (FLOAT, count.checked_mul(2)?),
        D::Int64 => (INT64, count),
        D::Double => (DOUBLE, count),
        D::Complex128 => (DOUBLE, count.checked_mul(2)?),
        D::Uint32 | D::Uint64 => (UINT64, count),
        D::Uint4 | D::Int4 | D::Float4e2m1 => (INT32, count.div_ceil(2)),
        D::Uint2 | D::Int2 => (INT32, count.div_ceil(4)),
        _ => (INT32, count),
    })
}

/// The product of `dims`.
///
/// # Errors
/// A negative dimension, or a product beyond 2^63.
pub fn elements(name: &str, dims: &[i64]) -> Result<u64, Refusal> {
    let wrong = |what: &str| {
        let message = format!("tensor {} has shape {}: {what}", quoted(name), shown(dims));
        Refusal::new(reason::TENSOR_SIZE, message)
    };
    if dims.iter().any(|dim| *dim < 0) {
        return Err(wrong("a dimension is negative"));
    }
    if dims.contains(&0) {
        return Ok(0);
    }
    dims.iter()
        .try_fold(1_i64, |product, dim| product.checked_mul(*dim))
        .map(i64::unsigned_abs)
        .ok_or_else(|| wrong("the number of elements overflows"))
}

fn shown(dims: &[i64]) -> String {
    let head: Vec<String> = dims.iter().take(8).map(i64::to_string).collect();
    format!("[{}{}]", head.join(", "), if dims.len() > 8 { ", …" } else { "" })
}

impl Facts {
    /// The facts of a decoded tensor.
    pub fn of(tensor: &TensorProto) -> Self {
        let external = tensor.data_location == 1;
        let entry = |e: &super::proto::StringStringEntryProto| (e.key.clone(), e.value.clone());
        Self {
            name: tensor.name.clone(),
            data_type: tensor.data_type,
            dims: tensor.dims.clone(),
            raw: tensor.raw_data.len() as u64,
            typed: [
                tensor.float_data.len() as u64,
                tensor.int32_data.len() as u64,
                tensor.int64_data.len() as u64,
                tensor.double_data.len() as u64,
                tensor.uint64_data.len() as u64,
            ],
            strings: tensor.string_data.len() as u64,
            external,
            entries: tensor.external_data.iter().map(entry).collect(),
        }
    }

    /// Checks that shape, type and data agree and stay within `budget`. Returns the place of the
    /// data when they lie in another file.
    ///
    /// # Errors
    /// [`reason::TENSOR_SIZE`], [`reason::RESOURCE_BUDGET`], [`reason::CORRUPT`] for an unknown type,
    /// [`reason::EXTERNAL_DATA_KEY`] and [`reason::EXTERNAL_DATA_RANGE`].
    pub fn check(&self, budget: &Budget) -> Result<Option<External>, Refusal> {
        if self.dims.len() > budget.rank {
            let message = format!(
                "tensor {} has {} dimensions, allowed are {}",
                quoted(&self.name),
                self.dims.len(),
                budget.rank
            );
            return Err(Refusal::budget(message));
        }
        let count = elements(&self.name, &self.dims)?;
        if self.data_type == DataType::String as i32 {
            return self.check_strings(count, budget);
        }
        let Some(bits) = bits(self.data_type) else {
            let message = format!(
                "tensor {} has the unknown element type {}",
                quoted(&self.name),
                self.data_type
            );
            return Err(Refusal::corrupt(message));
        };
        let want = self.within(count.checked_mul(bits).map(|all| all.div_ceil(8)), budget)?;
        self.check_keys()?;
        if self.external {
            return self.check_external(want).map(Some);
        }
        self.check_inline(count, want)?;
        Ok(None)
    }

    fn check_strings(&self, count: u64, budget: &Budget) -> Result<Option<External>, Refusal> {
        self.within(count.checked_mul(8), budget)?;
        if self.external || self.raw > 0 || self.strings != count || self.typed != [0; 5] {
            return Err(
                self.wrong_size(&format!("{count} strings"), &format!("{} strings", self.strings))
            );
        }
        Ok(None)
    }

    fn within(&self, want: Option<u64>, budget: &Budget) -> Result<u64, Refusal> {
        match want {
            Some(want) if want <= budget.bytes => Ok(want),
            _ => Err(Refusal::budget(format!(
                "tensor {} of shape {} is larger than the {} bytes allowed",
                quoted(&self.name),
                shown(&self.dims),
                budget.bytes
            ))),
        }
    }

    fn check_inline(&self, count: u64, want: u64) -> Result<(), Refusal> {
        let numbers: u64 = self.typed.iter().sum();
        if self.strings > 0 || (self.raw > 0 && numbers > 0) {
            return Err(self.wrong_size("one kind of data", "several kinds of data"));
        }
        if numbers == 0 {
            if self.raw == want {
                return Ok(());
            }
            return Err(self.wrong_size(&format!("{want} bytes"), &format!("{} bytes", self.raw)));
        }
        let Some((field, length)) = carrier(self.data_type, count) else {
            return Err(self.wrong_size("data of its type", "none"));
        };
        if self.typed.get(field) == Some(&length) && numbers == length {
            return Ok(());
        }
        Err(self
            .wrong_size(&format!("{length} numbers of its type"), &format!("{numbers} numbers")))
    }

    fn wrong_size(&self, want: &str, seen: &str) -> Refusal {
        let kind = DataType::try_from(self.data_type).map_or("?", |kind| kind.as_str_name());
        Refusal::new(
            reason::TENSOR_SIZE,
            format!(
                "tensor {} of shape {} and type {kind} needs {want} and holds {seen}",
                quoted(&self.name),
                shown(&self.dims)
            ),
        )
    }

    fn check_keys(&self) -> Result<(), Refusal> {
        const KNOWN: [&str; 4] = ["location", "offset", "length", "checksum"];
        for (index, (key, _)) in self.entries.iter().enumerate() {
            let twice = self.entries.iter().take(index).any(|(earlier, _)| earlier == key);
            if twice || !KNOWN.contains(&key.as_str()) {
                let what = if twice { "twice" } else { "which is not known" };
                let message = format!(
                    "external data of tensor {} have the key {} {what}",
                    quoted(&self.name),
                    quoted(key)
                );
                return Err(Refusal::new(reason::EXTERNAL_DATA_KEY, message));
            }
        }
        Ok(())
    }

    fn check_external(&self, want: u64) -> Result<External, Refusal> {
        if self.raw > 0 || self.strings > 0 || self.typed != [0; 5] {
            return Err(self.wrong_size("external data only", "external and inline data"));
        }
        let location = self.entry("location").ok_or_else(|| {
            let message = format!("tensor {} is external without a location", quoted(&self.name));
            Refusal::new(reason::EXTERNAL_DATA_PATH, message)
        })?;
        let offset = self.number("offset")?.unwrap_or(0);
        let length = self.number("length")?.unwrap_or(want);
        if length != want {
            return Err(
                self.wrong_size(&format!("{want} bytes"), &format!("{length} external bytes"))
            );
        }
        Ok(External { location: location.to_owned(), offset, length })
    }

    fn entry(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.entry(key) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number) if number <= i64::MAX as u64 && text.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Some(number))
            }
            _ => Err(Refusal::new(
                reason::EXTERNAL_DATA_RANGE,
                format!(
                    "external data of tensor {} have the {key} {}",
                    quoted(&self.name),
                    quoted(text)
                ),
            )),
        }
    }
}
