//! Operators that join, cut, pad, repeat or pick along axes.

use super::{Call, Dim, Fact, Rule, axes, axis};
use crate::onnx::{DataType, weights};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Concat" => concat,
        "Split" => split,
        "Slice" => slice,
        "Gather" => gather,
        "GatherElements" => {
            |call| Some(vec![Fact::new(call.fact(0).data_type, call.shape(1).cloned())])
        }
        "GatherND" => gather_nd,
        "Pad" => pad,
        "Resize" | "Upsample" => resize,
        "NonZero" => non_zero,
        "TopK" => top_k,
        "OneHot" => one_hot,
        _ => return None,
    })
}

fn concat(call: &Call<'_>) -> Option<Vec<Fact>> {
    let data_type = call.fact(0).data_type;
    let rank = (0..call.inputs.len()).find_map(|at| call.rank(at))?;
    // Before operator set 4 the axis had a default.
    let along = axis(call.int("axis", 1), rank)?;
    let shapes: Option<Vec<&Vec<Dim>>> = (0..call.inputs.len()).map(|at| call.shape(at)).collect();
    let Some(shapes) = shapes.filter(|all| all.iter().all(|shape| shape.len() == rank)) else {
        return Some(vec![Fact::new(data_type, Some(vec![None; rank]))]);
    };
    let dims = |at: usize| shapes.iter().map(move |shape| shape.get(at).copied().flatten());
    let one = |at: usize| {
        if at == along {
            dims(at).try_fold(0_i64, |sum, dim| sum.checked_add(dim?))
        } else {
            dims(at).flatten().next()
        }
    };
    let shape: Vec<Dim> = (0..rank).map(one).collect();
    let mut fact = Fact::new(data_type, Some(shape));
    if rank == 1 && call.inputs.iter().any(|input| input.numbers.is_some()) {
        let part = |input: &&Fact| match (&input.numbers, input.shape.as_deref()) {
            (Some(numbers), _) => Some(numbers.clone()),
            (None, Some([Some(length)])) => {
                let length = usize::try_from(*length).ok().filter(|n| *n <= super::LONGEST);
                length.map(|length| vec![None; length])
            }
            _ => None,
        };
        let parts: Option<Vec<Vec<Dim>>> = call.inputs.iter().map(part).collect();
        fact.numbers = parts.map(|parts| parts.concat()).filter(|all| all.len() <= super::LONGEST);
    }
    Some(vec![fact])
}

fn split(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0)?;
    let along = axis(call.int("axis", 0), shape.len())?;
    let parts = call.node.output.len();
    let sizes: Vec<Dim> = match call.listed("split", 1) {
        Ok(Some(sizes)) => sizes.into_iter().map(Some).collect(),
        Err(()) => vec![None; parts],
        Ok(None) => {
            let count = call.int("num_outputs", parts as i64).max(1);
            let all = shape.get(along).copied().flatten();
            // The last part may be smaller.
            let size = all.map(|all| all.checked_add(count - 1).map_or(0, |sum| sum / count));
            let left = |at: i64| Some((all? - size? * at).clamp(0, size?));
            (0..parts as i64).map(left).collect()
        }
    };
    let part = |size: &Dim| {
        let with = |(at, dim): (usize, &Dim)| if at == along { *size } else { *dim };
        Fact::new(call.fact(0).data_type, Some(shape.iter().enumerate().map(with).collect()))
    };
    Some(sizes.iter().map(part).collect())
}

fn slice(call: &Call<'_>) -> Option<Vec<Fact>> {
    let fact = call.fact(0);
    let shape = fact.shape.as_ref()?;
    let unknown = || Some(vec![Fact::new(fact.data_type, Some(vec![None; shape.len()]))]);
    let (Ok(Some(starts)), Ok(Some(ends)), Ok(list), Ok(steps)) = (
        call.listed("starts", 1),
        call.listed("ends", 2),
        call.listed("axes", 3),
        call.listed("steps", 4),
    ) else {
        return unknown();
    };
    let list = list.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    let mut made = shape.clone();
    let mut numbers = fact.numbers.clone();
    let places = axes(&list, shape.len())?;
    for (((at, start), end), step) in places.iter().zip(&starts).zip(&ends).zip(&steps) {
        let (at, start, end, step) = (*at, *start, *end, *step);
        let length = shape.get(at).copied().flatten();
        let taken = length.map(|length| cut(length, start, end, step));
        if let Some(place) = made.get_mut(at) {
            *place = taken.as_ref().map(|(_, count)| *count);
        }
        numbers = numbers.zip(taken).and_then(|(all, (first, count))| {
            let one = |n: i64| Some(*all.get(usize::try_from(first + n * step).ok()?)?);
            (0..count).map(one).collect()
        });
    }
    Some(vec![Fact { data_type: fact.data_type, shape: Some(made), numbers }])
}

/// The first index and the number of elements of a slice, as the ONNX specification clamps it.
fn cut(length: i64, start: i64, end: i64, step: i64) -> (i64, i64) {
    let from_front = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
    let (start, end) = (from_front(start), from_front(end));
    if step > 0 {
        let (start, end) = (start.clamp(0, length), end.clamp(0, length));
        (start, ((end - start).max(0) + (step - 1).min(length)) / step)
    } else if step < 0 {
        let step = step.saturating_neg();
        let (start, end) = (start.clamp(0, (length - 1).max(0)), end.clamp(-1, length - 1));
        (start, ((start - end).max(0) + (step - 1).min(length)) / step)
    } else {
        (0, -1)
    }
}

fn gather(call: &Call<'_>) -> Option<Vec<Fact>> {
    let (data, indices) = (call.fact(0), call.fact(1));
    let shape = data.shape.as_ref().zip(indices.shape.as_ref()).and_then(|(from, by)| {
        let at = axis(call.int("axis", 0), from.len())?;
        Some([from.get(..at)?, by, from.get(at + 1..)?].concat())
    });
    let picked = || -> Option<Vec<Dim>> {
        let all = data.numbers.as_ref()?;
        let one = |at: i64| Some(*all.get(axis(at, all.len())?)?);
        call.numbers(1)?.into_iter().map(one).collect()
    };
    let numbers = shape.as_ref().filter(|shape| shape.len() <= 1).and_then(|_| picked());
    Some(vec![Fact { data_type: data.data_type, shape, numbers }])
}

fn gather_nd(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0).zip(call.shape(1)).and_then(|(from, by)| {
        let batch = usize::try_from(call.int("batch_dims", 0)).ok()?;
        let (depth, outer) = by.split_last()?;
        let depth = usize::try_from((*depth)?).ok()?;
        Some([outer, from.get(batch.checked_add(depth)?..)?].concat())
    });
    Some(vec![Fact::new(call.fact(0).data_type, shape)])
}

fn pad(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0)?;
    let places = match call.numbers(3) {
        Some(list) => axes(&list, shape.len())?,
        None if call.given(3) => {
            return Some(vec![Fact::new(call.fact(0).data_type, Some(vec![None; shape.len()]))]);
        }
        None => (0..shape.len()).collect(),
    };
    let pads = call.listed("pads", 1).ok().flatten();
    let mut made = shape.clone();
    for (number, at) in places.iter().enumerate() {
        let more = pads
            .as_ref()
            .and_then(|pads| pads.get(number)?.checked_add(*pads.get(number + places.len())?));
        if let Some(place) = made.get_mut(*at) {
            *place = place.zip(more).and_then(|(length, more)| length.checked_add(more));
        }
    }
    Some(vec![Fact::new(call.fact(0).data_type, Some(made))])
}

fn resize(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0)?;
    let fact = |made: Vec<Dim>| Some(vec![Fact::new(call.fact(0).data_type, Some(made))]);
    let plain = call.ints("axes").is_none()
        && matches!(call.text("keep_aspect_ratio_policy"), "" | "stretch");
    if plain && call.given(3) {
        let sizes = call.fact(3).numbers.clone().filter(|sizes| sizes.len() == shape.len());
        return fact(sizes.unwrap_or_else(|| vec![None; shape.len()]));
    }
    let at = if call.node.op_type == "Resize" && call.opset >= 11 { 2 } else { 1 };
    let name = call.node.input.get(at).filter(|_| plain);
    let scales = name.and_then(|name| weights::to_f32(call.seen.get(name)?));
    let scales = scales.filter(|scales| scales.len() == shape.len());
    let one = |(dim, scale): (&Dim, f32)| {
        // Whole factors only: how others round differs between implementations.
        (scale.fract() == 0.0 && (1.0..1e6).contains(&scale)).then_some(())?;
        (*dim)?.checked_mul(scale as i64)
    };
    match scales {
        Some(scales) => fact(shape.iter().zip(scales).map(one).collect()),
        None => fact(vec![None; shape.len()]),
    }
}

fn non_zero(call: &Call<'_>) -> Option<Vec<Fact>> {
    let rank = call.rank(0).map(|rank| rank as i64);
    Some(vec![Fact::new(DataType::Int64 as i32, Some(vec![rank, None]))])
}

fn top_k(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0)?;
    let at = axis(call.int("axis", -1), shape.len())?;
    let given = call.numbers(1).and_then(|list| list.first().copied());
    let count = if call.opset < 10 { Some(call.int("k", 1)) } else { given };
    let mut made = shape.clone();
    if let Some(place) = made.get_mut(at) {
        *place = count;
    }
    let indices = Fact::new(DataType::Int64 as i32, Some(made.clone()));
    Some(vec![Fact::new(call.fact(0).data_type, Some(made)), indices])
}

fn one_hot(call: &Call<'_>) -> Option<Vec<Fact>> {
    let mut made = call.shape(0)?.clone();
    let at = axis(call.int("axis", -1), made.len() + 1)?;
    made.insert(at, call.numbers(1).and_then(|list| list.first().copied()));
    Some(vec![Fact::new(call.fact(2).data_type, Some(made))])
}
