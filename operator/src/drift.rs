//! Whether an object still is what was declared. Pure.
//!
//! The API server adds defaults and other writers add fields of their own: both are no drift. What
//! they changed or removed of ours is.

use serde_json::{Map, Value};

/// Names by which the API server tells the elements of a list apart, the most telling first.
const LIST_KEYS: [&str; 5] = ["uid", "mountPath", "containerPort", "topologyKey", "name"];

/// Fields whose values are quantities: the API server writes `1000m` as `1`.
const QUANTITIES: [&str; 3] = ["limits", "requests", "sizeLimit"];

/// Whether `seen` has everything that `wanted` has.
///
/// Elements of lists that have a key are found by it and others may stand beside them; other lists
/// must agree element by element.
pub fn subset(wanted: &Value, seen: &Value) -> bool {
    agrees(wanted, seen, false)
}

fn agrees(wanted: &Value, seen: &Value, quantities: bool) -> bool {
    match (wanted, seen) {
        (Value::Object(wanted), Value::Object(seen)) => wanted.iter().all(|(name, value)| {
            let quantities = quantities || QUANTITIES.contains(&name.as_str());
            value.is_null() || seen.get(name).is_some_and(|seen| agrees(value, seen, quantities))
        }),
        (Value::Array(wanted), Value::Array(seen)) => match key_of(wanted) {
            Some(key) => wanted.iter().all(|wanted| {
                let same = |seen: &&Value| seen.get(key) == wanted.get(key);
                seen.iter().filter(same).any(|seen| agrees(wanted, seen, quantities))
            }),
            None => {
                wanted.len() == seen.len()
                    && wanted.iter().zip(seen).all(|(w, s)| agrees(w, s, quantities))
            }
        },
        (Value::String(wanted), Value::String(seen)) if quantities => {
            wanted == seen || quantity(wanted).is_some_and(|value| quantity(seen) == Some(value))
        }
        _ => wanted == seen,
    }
}

/// The field that all of `elements` have and that tells them apart.
fn key_of(elements: &[Value]) -> Option<&'static str> {
    let objects: Option<Vec<&Map<String, Value>>> = elements.iter().map(Value::as_object).collect();
    let objects = objects.filter(|objects| !objects.is_empty())?;
    LIST_KEYS.into_iter().find(|key| objects.iter().all(|object| object.contains_key(*key)))
}

/// The value of a Kubernetes quantity.
fn quantity(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|value| value * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::subset;

    #[test]
    fn additions_are_not_drift_and_changes_are() {
        let wanted = json!({"spec": {"replicas": 1, "args": ["a"]}, "gone": null});
        let rows = [
            (json!({"spec": {"replicas": 1, "args": ["a"], "more": 1}, "x": 1}), true),
            (json!({"spec": {"replicas": 2, "args": ["a"]}}), false),
            (json!({"spec": {"replicas": 1, "args": ["a", "b"]}}), false),
            (json!({"spec": {"replicas": 1}}), false),
        ];
        for (seen, same) in rows {
            assert_eq!(subset(&wanted, &seen), same, "{seen}");
        }
    }

    #[test]
    fn keyed_elements_are_found_wherever_they_stand_and_whoever_stands_beside_them() {
        let wanted = json!({"ports": [{"name": "http", "port": 80}]});
        let rows = [
            (json!({"ports": [{"name": "x", "port": 1}, {"name": "http", "port": 80}]}), true),
            (json!({"ports": [{"name": "http", "port": 81}]}), false),
            (json!({"ports": []}), false),
        ];
        for (seen, same) in rows {
            assert_eq!(subset(&wanted, &seen), same, "{seen}");
        }
    }

    #[test]
    fn quantities_are_compared_by_value_and_other_texts_by_letter() {
        let cpu = |text: &str| json!({"resources": {"limits": {"cpu": text}}});
        assert!(subset(&cpu("1000m"), &cpu("1")));
        assert!(subset(&cpu("1Gi"), &cpu("1024Mi")));
        assert!(!subset(&cpu("1000m"), &cpu("2")));
        assert!(!subset(&json!({"label": "1000m"}), &json!({"label": "1"})));
    }
}
