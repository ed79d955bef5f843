//! The declarations of the examples' tasks, which are all that a client needs.
//! `celery/examples/python/tasks.py` declares the same tasks under the same names,
//! so that clients of each language can call workers of the other.

#![allow(dead_code, unreachable_pub, reason = "each example uses some of them")]

use celery::{Map, Task, Value};
use serde::{Deserialize, Serialize};

pub const ADD: Task<(Number, Number), Number> = Task::new("tasks.add").params(&["x", "y"]);
pub const SUB: Task<(Number, Number), Number> = Task::new("tasks.sub").params(&["x", "y"]);
pub const MUL: Task<(Number, Number), Number> = Task::new("tasks.mul").params(&["x", "y"]);
pub const DIVIDE: Task<(Number, Number), f64> = Task::new("tasks.divide").params(&["x", "y"]);
pub const XSUM: Task<(Vec<Number>,), Number> = Task::new("tasks.xsum").params(&["numbers"]);
pub const SLEEP: Task<(f64,), f64> = Task::new("tasks.sleep").params(&["seconds"]);
pub const FAIL: Task<(String,), ()> = Task::new("tasks.fail").params(&["message"]);
pub const RETRY: Task<(u32,), u32> = Task::new("tasks.retry").params(&["times=1"]);
pub const ECHO: Task<(Vec<Value>, Map), Echo> =
    Task::new("tasks.echo").params(&["*args", "**kwargs"]);
pub const PROGRESS: Task<(u32,), u32> = Task::new("tasks.progress").params(&["steps=3"]);

/// A Python number: an integer or a float.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    Int(i64),
    Float(f64),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Echo {
    pub args: Vec<Value>,
    pub kwargs: Map,
}

impl Number {
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::Float(number) => write!(f, "{number:?}"),
        }
    }
}
