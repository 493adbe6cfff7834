//! Reads a model's wire form from end to end before anything is decoded, in constant memory.
//!
//! It counts what decoding would allocate, bounds nesting and names, and judges every tensor, so
//! that a hostile file is refused while it has cost nothing.

use std::io::{BufRead, Seek};

use lithe::names::reason;

use super::budget::Budget;
use super::facts::{self, Facts};
use super::refusal::{Refusal, quoted};
use super::wire::{Wire, WireType};
use super::{AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes in all graphs and functions.
    pub nodes: u64,
    /// Tensors, wherever they stand.
    pub tensors: u64,
    /// Bytes that the decoded messages take, without raw data.
    pub decoded: u64,
    /// Main graphs seen: exactly one in a model.
    pub graphs: u64,
}

/// The messages of the format, as far as the scan tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TypeTensor,
    TypeNested,
    TypeMap,
    Shape,
    Dimension,
    Opaque,
    Function,
    Opset,
    Entry,
    Training,
    Annotation,
    Segment,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Message(Message),
    /// A name: short.
    Name,
    /// Text that people read, as long as the file's budget allows.
    Text,
    /// Bytes that are kept as they are.
    Blob,
    /// One number.
    Number,
    /// Numbers of this many bytes each when decoded; 0 on the wire means variable.
    Numbers {
        wire: u64,
        memory: u64,
    },
    /// Not in the format as we know it: skipped.
    Unknown,
}

const VARINTS: Field = Field::Numbers { wire: 0, memory: 8 };
const FLOATS: Field = Field::Numbers { wire: 4, memory: 4 };
const DOUBLES: Field = Field::Numbers { wire: 8, memory: 8 };

/// The format, as a table: the kind of field `number` of `message`.
fn field(message: Message, number: u32) -> Field {
    use Field::{Blob, Name, Number, Text};
    use Message as M;
    let sub = Field::Message;
    match (message, number) {
        (M::Model, 1 | 5) | (M::Opset, 2) | (M::Dimension, 1) => Number,
        (M::Model, 2..=4) | (M::Graph, 2) => Name,
        (M::Model | M::Node, 6) | (M::Graph, 10) | (M::Attribute, 13) => Text,
        (M::Model, 7) | (M::Attribute, 6 | 11) | (M::Training, 1 | 2) => sub(M::Graph),
        (M::Model, 8) | (M::Function, 9) => sub(M::Opset),
        (M::Model | M::Function, 14) | (M::Graph | M::Tensor, 16) => sub(M::Entry),
        (M::Model, 20) => sub(M::Training),
        (M::Model, 25) => sub(M::Function),
        (M::Graph, 1) | (M::Function, 7) => sub(M::Node),
        (M::Graph, 5) | (M::Attribute, 5 | 10) | (M::Sparse, 1 | 2) => sub(M::Tensor),
        (M::Graph, 11..=13) | (M::Function, 12) => sub(M::ValueInfo),
        (M::Graph, 14) => sub(M::Annotation),
        (M::Graph, 15) | (M::Attribute, 22 | 23) => sub(M::Sparse),
        (M::Node, 1..=4 | 7 | 8) | (M::Attribute, 1 | 21) => Name,
        (M::Node, 5) | (M::Function, 11) => sub(M::Attribute),
        (M::Node, 9) | (M::ValueInfo, 4) | (M::Training, 3 | 4) => sub(M::Entry),
        (M::Attribute, 2 | 3 | 20) => Number,
        (M::Attribute, 4 | 9) => Blob,
        (M::Attribute, 7) => FLOATS,
        (M::Attribute, 8) => VARINTS,
        (M::Attribute, 14 | 15) | (M::ValueInfo, 2) => sub(M::Type),
        (M::Tensor, 1 | 5 | 7 | 11) | (M::Sparse, 3) => VARINTS,
        (M::Tensor, 2 | 14) | (M::TypeTensor, 1) | (M::TypeMap, 1) | (M::Segment, 1 | 2) => Number,
        (M::Tensor, 3) => sub(M::Segment),
        (M::Tensor, 4) => FLOATS,
        (M::Tensor, 6 | 9) => Blob,
        (M::Tensor, 8) | (M::ValueInfo, 1) | (M::Opset, 1) | (M::Annotation, 1) => Name,
        (M::Tensor, 10) => DOUBLES,
        (M::Tensor, 12) | (M::ValueInfo, 3) | (M::Function, 8) => Text,
        (M::Tensor, 13) | (M::Annotation, 2) => sub(M::Entry),
        (M::Type, 1 | 8) => sub(M::TypeTensor),
        (M::Type, 4 | 9) => sub(M::TypeNested),
        (M::Type, 5) => sub(M::TypeMap),
        (M::Type, 6) => Name,
        (M::Type, 7) => sub(M::Opaque),
        (M::TypeTensor, 2) => sub(M::Shape),
        (M::TypeNested, 1) | (M::TypeMap, 2) => sub(M::Type),
        (M::Shape, 1) => sub(M::Dimension),
        (M::Dimension, 2 | 3) | (M::Opaque, 1 | 2) => Name,
        (M::Function, 1 | 4..=6 | 10 | 13) => Name,
        (M::Entry, 1 | 2) => Text,
        _ => Field::Unknown,
    }
}

/// Bytes that a decoded message takes. Lists grow by doubling, hence twice the struct.
fn weight(message: Message) -> u64 {
    let size = match message {
        Message::Model | Message::Training | Message::Graph => size_of::<GraphProto>(),
        Message::Node => size_of::<NodeProto>(),
        Message::Attribute => size_of::<AttributeProto>(),
        Message::Tensor => size_of::<TensorProto>(),
        Message::Sparse => 2 * size_of::<TensorProto>(),
        Message::ValueInfo | Message::Type | Message::TypeNested => size_of::<ValueInfoProto>(),
        Message::Function => size_of::<FunctionProto>(),
        _ => 64,
    };
    2 * size as u64
}

/// Scans `size` bytes of `reader`.
///
/// # Errors
/// The first thing that is wrong, in file order.
pub fn scan<R: BufRead + Seek>(reader: R, size: u64, budget: &Budget) -> Result<Counts, Refusal> {
    if size > budget.bytes {
        let message = format!("the model file has {size} bytes, allowed are {}", budget.bytes);
        return Err(Refusal::budget(message));
    }
    let mut scan = Scan { wire: Wire::new(reader), budget, counts: Counts::default() };
    scan.message(Message::Model, size, 0)?;
    match scan.counts.graphs {
        1 => Ok(scan.counts),
        0 => Err(Refusal::corrupt("the file is readable as protobuf but holds no ONNX graph")),
        many => Err(Refusal::corrupt(format!("the model holds {many} main graphs"))),
    }
}

struct Scan<'a, R> {
    wire: Wire<R>,
    budget: &'a Budget,
    counts: Counts,
}

impl<R: BufRead + Seek> Scan<'_, R> {
    fn message(&mut self, message: Message, end: u64, depth: u32) -> Result<(), Refusal> {
        if depth > self.budget.depth {
            let message = format!(
                "the model nests messages more than {} deep (graphs in graphs, types in types)",
                self.budget.depth
            );
            return Err(Refusal::new(reason::CYCLE, message));
        }
        self.count(message)?;
        if message == Message::Tensor {
            return self.tensor(end, depth);
        }
        while let Some((number, kind)) = self.wire.key(end)? {
            if message == Message::Model && number == 7 {
                self.counts.graphs += 1;
            }
            self.value(message, number, kind, end, depth)?;
        }
        Ok(())
    }

    fn count(&mut self, message: Message) -> Result<(), Refusal> {
        let budget = self.budget;
        match message {
            Message::Node => self.counts.nodes += 1,
            Message::Tensor => self.counts.tensors += 1,
            _ => {}
        }
        if self.counts.nodes > budget.nodes {
            return Err(Refusal::budget(format!("the model has more than {} nodes", budget.nodes)));
        }
        if self.counts.tensors > budget.tensors {
            return Err(Refusal::budget(format!(
                "the model has more than {} tensors",
                budget.tensors
            )));
        }
        self.grow(weight(message))
    }

    fn grow(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.counts.decoded = self.counts.decoded.saturating_add(bytes);
        if self.counts.decoded > self.budget.decoded {
            let message = format!(
                "decoding the model would take more than {} bytes besides its weights",
                self.budget.decoded
            );
            return Err(Refusal::budget(message));
        }
        Ok(())
    }

    fn value(
        &mut self,
        message: Message,
        number: u32,
        kind: WireType,
        end: u64,
        depth: u32,
    ) -> Result<(), Refusal> {
        match (field(message, number), kind) {
            (Field::Message(inner), WireType::Delimited) => {
                let stop = self.wire.delimited(end)?;
                self.message(inner, stop, depth + 1)
            }
            (Field::Name, WireType::Delimited) => self.text(end, true).map(|_| ()),
            (Field::Text, WireType::Delimited) => self.text(end, false).map(|_| ()),
            (Field::Blob, WireType::Delimited) => {
                let stop = self.wire.delimited(end)?;
                self.grow(48 + stop.saturating_sub(self.wire.position()))?;
                self.wire.skip_to(stop)
            }
            (Field::Numbers { wire, memory }, _) => {
                self.numbers(wire, memory, kind, end).map(|_| ())
            }
            (Field::Number, WireType::Varint | WireType::Fixed32) | (Field::Unknown, _) => {
                self.wire.skip(kind, end)
            }
            (expected, _) => Err(self.wire.damaged(&format!(
                "field {number} of a {message:?} has another form than its {}",
                match expected {
                    Field::Message(_) => "message",
                    Field::Number => "number",
                    _ => "text",
                }
            ))),
        }
    }

    /// Checks a text's length and skips it; returns where it began.
    fn text(&mut self, end: u64, is_name: bool) -> Result<u64, Refusal> {
        let stop = self.wire.delimited(end)?;
        let length = stop.saturating_sub(self.wire.position());
        self.grow(48 + length)?;
        if is_name && length > self.budget.name {
            let head = self.wire.bytes(self.wire.position() + 64)?;
            let message = format!(
                "the name {} has {length} bytes, allowed are {}",
                quoted(&String::from_utf8_lossy(&head)),
                self.budget.name
            );
            return Err(Refusal::budget(message));
        }
        self.wire.skip_to(stop)?;
        Ok(length)
    }

    /// Skips a list of numbers, packed or single; returns how many there were.
    fn numbers(
        &mut self,
        wire: u64,
        memory: u64,
        kind: WireType,
        end: u64,
    ) -> Result<u64, Refusal> {
        if kind != WireType::Delimited {
            self.wire.skip(kind, end)?;
            self.grow(2 * memory)?;
            return Ok(1);
        }
        let stop = self.wire.delimited(end)?;
        let length = stop.saturating_sub(self.wire.position());
        let count = if wire == 0 {
            self.wire.count_varints(stop)?
        } else if length % wire == 0 {
            self.wire.skip_to(stop)?;
            length / wire
        } else {
            return Err(self.wire.damaged("a list of numbers with a part of a number"));
        };
        self.grow(count.saturating_mul(2 * memory))?;
        Ok(count)
    }

    /// Reads a tensor's facts and judges them.
    fn tensor(&mut self, end: u64, depth: u32) -> Result<(), Refusal> {
        let mut facts = Facts::default();
        while let Some((number, kind)) = self.wire.key(end)? {
            match (number, kind) {
                (1, _) => self.dims(&mut facts.dims, kind, end)?,
                (2, WireType::Varint) => facts.data_type = self.wire.varint(end)? as i32,
                (14, WireType::Varint) => facts.external = self.wire.varint(end)? == 1,
                (4, _) => self.typed(&mut facts, facts::FLOAT, 4, kind, end)?,
                (5, _) => self.typed(&mut facts, facts::INT32, 0, kind, end)?,
                (7, _) => self.typed(&mut facts, facts::INT64, 0, kind, end)?,
                (10, _) => self.typed(&mut facts, facts::DOUBLE, 8, kind, end)?,
                (11, _) => self.typed(&mut facts, facts::UINT64, 0, kind, end)?,
                (6, WireType::Delimited) => {
                    self.text(end, false)?;
                    facts.strings += 1;
                }
                (8, WireType::Delimited) => facts.name = self.short_text(end)?,
                (9, WireType::Delimited) => {
                    let stop = self.wire.delimited(end)?;
                    facts.raw = stop.saturating_sub(self.wire.position());
                    self.wire.skip_to(stop)?;
                }
                (13, WireType::Delimited) => self.entry(&mut facts, end)?,
                _ => self.value(Message::Tensor, number, kind, end, depth)?,
            }
        }
        facts.check(self.budget).map(|_| ())
    }

    fn typed(
        &mut self,
        facts: &mut Facts,
        field: usize,
        wire: u64,
        kind: WireType,
        end: u64,
    ) -> Result<(), Refusal> {
        let count = self.numbers(wire, 8, kind, end)?;
        if let Some(seen) = facts.typed.get_mut(field) {
            *seen = seen.saturating_add(count);
        }
        Ok(())
    }

    fn dims(&mut self, dims: &mut Vec<i64>, kind: WireType, end: u64) -> Result<(), Refusal> {
        let stop = match kind {
            WireType::Delimited => self.wire.delimited(end)?,
            // One number: read it and stop.
            _ => self.wire.position() + 1,
        };
        while self.wire.position() < stop {
            // More than the budget's rank is refused later; until then they cost nothing.
            let dim = self.wire.varint(end)? as i64;
            if dims.len() <= self.budget.rank {
                dims.push(dim);
            }
        }
        Ok(())
    }

    fn short_text(&mut self, end: u64) -> Result<String, Refusal> {
        let stop = self.wire.delimited(end)?;
        let length = stop.saturating_sub(self.wire.position());
        self.grow(48 + length)?;
        let head = self.wire.bytes(stop.min(self.wire.position() + self.budget.name + 1))?;
        let text = String::from_utf8_lossy(&head).into_owned();
        if length > self.budget.name {
            let message = format!(
                "the name {} has {length} bytes, allowed are {}",
                quoted(&text),
                self.budget.name
            );
            return Err(Refusal::budget(message));
        }
        Ok(text)
    }

    /// One key and value of a tensor's external data.
    fn entry(&mut self, facts: &mut Facts, end: u64) -> Result<(), Refusal> {
        let stop = self.wire.delimited(end)?;
        self.grow(weight(Message::Entry))?;
        let (mut key, mut value) = (String::new(), String::new());
        while let Some((number, kind)) = self.wire.key(stop)? {
            match (number, kind) {
                (1, WireType::Delimited) => key = self.short_text(stop)?,
                (2, WireType::Delimited) => value = self.short_text(stop)?,
                _ => self.wire.skip(kind, stop)?,
            }
        }
        if facts.entries.len() >= 16 {
            let message =
                format!("external data of tensor {} have too many keys", quoted(&facts.name));
            return Err(Refusal::new(reason::EXTERNAL_DATA_KEY, message));
        }
        facts.entries.push((key, value));
        Ok(())
    }
}
