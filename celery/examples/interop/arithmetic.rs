//! Python's `+` and `*` for values of any type.

use celery::{TaskError, Value};

/// Returns `x + y` for numbers, texts or lists.
pub(crate) fn add(x: &Value, y: &Value) -> Result<Value, TaskError> {
    match (x, y) {
        (Value::Str(x), Value::Str(y)) => Ok(Value::Str(format!("{x}{y}"))),
        (Value::Array(x), Value::Array(y)) => Ok(Value::Array([&x[..], &y[..]].concat())),
        _ => numbers("+", x, y, i64::checked_add, |x, y| x + y),
    }
}

/// Returns `x * y` for numbers.
pub(crate) fn multiply(x: &Value, y: &Value) -> Result<Value, TaskError> {
    numbers("*", x, y, i64::checked_mul, |x, y| x * y)
}

/// Returns the sum of a list; 0 if it is empty.
pub(crate) fn sum(values: &[Value]) -> Result<Value, TaskError> {
    values
        .iter()
        .try_fold(Value::Int(0), |sum, value| add(&sum, value))
}

/// Returns whether the value is true in Python.
pub(crate) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Str(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Map(map) => !map.is_empty(),
        number => number.as_f64() != Some(0.0),
    }
}

fn numbers(
    operator: &str,
    x: &Value,
    y: &Value,
    ints: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
) -> Result<Value, TaskError> {
    if let (Value::Int(x), Value::Int(y)) = (x, y) {
        return ints(*x, *y)
            .map(Value::Int)
            .ok_or_else(|| TaskError::exception("OverflowError", "the result exceeds 64 bits"));
    }
    if let (Some(x), Some(y)) = (x.as_f64(), y.as_f64()) {
        return Ok(Value::Float(floats(x, y)));
    }
    let kinds = format!("'{}' and '{}'", python_type(x), python_type(y));
    let message = format!("unsupported operand type(s) for {operator}: {kinds}");
    Err(TaskError::exception("TypeError", message))
}

fn python_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Float(_) => "float",
        Value::Str(_) => "str",
        Value::Bytes(_) => "bytes",
        Value::Array(_) => "list",
        Value::Map(_) => "dict",
        _ => "int",
    }
}
