//! Arguments and replies of commands in the forms that Python uses. Pure.

use celery_protocol::{Map, Value, repr};

/// Returns a map with one entry, such as `{"ok": …}`.
pub(crate) fn entry(name: &str, value: impl Into<Value>) -> Value {
    let mut map = Map::new();
    map.insert(name, value);
    Value::Map(map)
}

pub(crate) fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    Value::Array(texts.into_iter().map(Value::from).collect())
}

/// Returns the error of a command without a required argument.
pub(crate) fn missing(argument: &str) -> String {
    format!("TypeError(\"missing 1 required argument: '{argument}'\")")
}

pub(crate) fn text(arguments: &Map, name: &str) -> Option<String> {
    arguments
        .get(name)
        .and_then(Value::as_str)
        .map(ToOwned::to_owned)
}

/// Reads the argument `task_id`: one id or a list of ids.
pub(crate) fn task_ids(arguments: &Map) -> Result<Vec<String>, String> {
    match arguments.get("task_id") {
        None => Err(missing("task_id")),
        Some(Value::Array(ids)) if ids.iter().all(|id| id.as_str().is_some()) => {
            Ok(texts(arguments.get("task_id")))
        }
        Some(Value::Str(id)) => Ok(vec![id.clone()]),
        Some(_) => Err("TypeError('task_id must be a text or a list of texts')".to_owned()),
    }
}

/// Reads a string or a list of strings; anything else is an empty list.
pub(crate) fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Str(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|one| one.as_str().map(ToOwned::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

/// Returns the truth value of an argument as in Python; Flower sends 1 for true.
pub(crate) fn is_true(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Str(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(number) => number.as_f64() != Some(0.0),
    }
}

/// Reads a finite number, which `celery control` may send as a string.
pub(crate) fn number(value: &Value) -> Option<f64> {
    value
        .as_f64()
        .or_else(|| value.as_str()?.trim().parse().ok())
        .filter(|number: &f64| number.is_finite())
}

pub(crate) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Str(text) => Some(text.clone()),
        other => number(other).map(|number| number.to_string()),
    }
}

/// Returns a string as Python's `repr` prints it.
pub(crate) fn quoted(text: &str) -> String {
    let printed = repr::args(&(text,));
    printed
        .trim_start_matches('(')
        .trim_end_matches(",)")
        .to_owned()
}

/// Returns a set of strings as Python's `repr` prints it.
pub(crate) fn set(ids: &[String]) -> String {
    if ids.is_empty() {
        return "set()".to_owned();
    }
    let ids: Vec<_> = ids.iter().map(|id| quoted(id)).collect();
    format!("{{{}}}", ids.join(", "))
}

/// Reads a signal by number or name, with or without `SIG`; SIGTERM by default.
pub(crate) fn signal(value: Option<&Value>) -> Result<i32, String> {
    let name = match value {
        None | Some(Value::Null) => return Ok(15),
        Some(Value::Str(name)) => name.to_ascii_uppercase(),
        Some(number) => {
            let number = number
                .as_i64()
                .and_then(|number| i32::try_from(number).ok());
            return number
                .filter(|number| (1..=64).contains(number))
                .ok_or_else(|| "ValueError('no such signal')".to_owned());
        }
    };
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let found = SIGNALS.iter().find(|(known, _)| *known == short);
    found
        .map(|(_, number)| *number)
        .ok_or_else(|| format!("KeyError({})", quoted(&name)))
}

/// The signals of Linux that terminate a process.
const SIGNALS: [(&str, i32); 9] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", 15),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_is_read_from_name_or_number() {
        assert_eq!(signal(None), Ok(15));
        assert_eq!(signal(Some(&"SIGKILL".into())), Ok(9));
        assert_eq!(signal(Some(&"int".into())), Ok(2));
        assert_eq!(signal(Some(&Value::Int(3))), Ok(3));
        assert!(signal(Some(&"SIGNOT".into())).is_err());
        assert!(signal(Some(&Value::Int(0))).is_err());
    }

    #[test]
    fn truth_value_matches_python() {
        let truths = [Value::Bool(true), Value::Int(1), "false".into()];
        assert!(truths.iter().all(|value| is_true(Some(value))));
        let others = [Value::Bool(false), Value::Int(0), "".into(), Value::Null];
        assert!(!others.iter().any(|value| is_true(Some(value))));
        assert!(!is_true(None));
    }

    #[test]
    fn strings_are_printed_as_by_python() {
        assert_eq!(quoted("nosuch"), "'nosuch'");
        assert_eq!(set(&["a".to_owned()]), "{'a'}");
        assert_eq!(set(&[]), "set()");
    }
}
