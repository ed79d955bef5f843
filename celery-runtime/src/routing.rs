//! Routing of tasks to queues by name: [`Routes`]. Pure.

use serde_json::Value;

use crate::boundary::ExchangeKind;

/// Routes from task names to queues: Celery's `task_routes`.
///
/// The first pattern that matches a task's name decides. Exact names are checked
/// before patterns with `*`.
///
/// ```
/// use celery_runtime::Routes;
///
/// let routes = Routes::new()
///     .route("images.*", "images")
///     .route("images.thumbnail", "fast");
/// assert_eq!(routes.find("images.resize").unwrap().queue.as_deref(), Some("images"));
/// assert_eq!(routes.find("images.thumbnail").unwrap().queue.as_deref(), Some("fast"));
/// assert!(routes.find("mail.send").is_none());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    routers: Vec<Vec<(String, Route)>>,
}

/// The destination of a task. Parts that are `None` keep the value of the task or of
/// its queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// The name of the queue.
    pub queue: Option<String>,
    /// The exchange, if not that of the queue.
    pub exchange: Option<String>,
    /// The kind of the exchange, if not that of the queue.
    pub exchange_type: Option<ExchangeKind>,
    /// The routing key, if not that of the queue.
    pub routing_key: Option<String>,
    /// The priority of messages.
    pub priority: Option<u8>,
}

impl Route {
    /// A route to the queue with this name.
    pub fn to(queue: impl Into<String>) -> Self {
        Self {
            queue: Some(queue.into()),
            ..Self::default()
        }
    }
}

impl From<&str> for Route {
    fn from(queue: &str) -> Self {
        Self::to(queue)
    }
}

impl Routes {
    /// Returns no routes: every task is sent to its own queue or the default one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a route for tasks whose name equals `pattern`, or matches it if it
    /// contains `*`, which stands for any text. Earlier calls take precedence.
    #[must_use]
    pub fn route(mut self, pattern: impl Into<String>, route: impl Into<Route>) -> Self {
        match self.routers.first_mut() {
            Some(router) => router.push((pattern.into(), route.into())),
            None => self.routers.push(vec![(pattern.into(), route.into())]),
        }
        self
    }

    /// Returns the route of the task with this name, if one matches.
    pub fn find(&self, name: &str) -> Option<&Route> {
        self.routers.iter().find_map(|router| {
            let exact = router.iter().find(|(pattern, _)| pattern == name);
            let matching = || {
                router
                    .iter()
                    .find(|(pattern, _)| pattern.contains('*') && matches(pattern, name))
            };
            exact.or_else(matching).map(|(_, route)| route)
        })
    }

    /// Reads the forms of Celery's setting: a map, or a list of maps and
    /// `[pattern, route]` pairs.
    pub(crate) fn from_json(value: &Value) -> Result<Self, String> {
        let routers = match value {
            Value::Null => Vec::new(),
            Value::Object(_) => vec![router(value)?],
            Value::Array(items) => items.iter().map(router).collect::<Result<_, _>>()?,
            other => return Err(format!("expected a map of routes, found {other}")),
        };
        Ok(Self { routers })
    }
}

fn router(value: &Value) -> Result<Vec<(String, Route)>, String> {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(pattern, target)| Ok((pattern.clone(), route(target)?)))
            .collect(),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(pattern), target] => Ok(vec![(pattern.clone(), route(target)?)]),
            _ => Err(format!("expected [pattern, route], found {value}")),
        },
        other => Err(format!("expected a map of routes, found {other}")),
    }
}

fn route(value: &Value) -> Result<Route, String> {
    if let Some(queue) = value.as_str() {
        return Ok(Route::to(queue));
    }
    if !value.is_object() {
        return Err(format!("expected a queue's name or a map, found {value}"));
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let kind = text("exchange_type").map(|name| {
        ExchangeKind::named(&name).ok_or_else(|| format!("there is no exchange type {name:?}"))
    });
    Ok(Route {
        queue: text("queue"),
        exchange: text("exchange"),
        exchange_type: kind.transpose()?,
        routing_key: text("routing_key"),
        priority: value
            .get("priority")
            .and_then(Value::as_u64)
            .map(|priority| priority.min(255) as u8),
    })
}

/// Returns whether `name` matches `pattern`, where `*` stands for any text as in
/// Python's `fnmatch`. `?` and `[` have no special meaning, since Celery recognizes
/// a pattern only by its `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_matches_any_text() {
        for (pattern, name, expected) in [
            ("a.*", "a.b.c", true),
            ("*.c", "a.b.c", true),
            ("a*c", "a.b.c", true),
            ("a*b*c", "a.b.c", true),
            ("*", "", true),
            ("a.*", "b.a.c", false),
            ("a*c", "a.b.cd", false),
            ("ab*b", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn routes_are_read_from_celerys_forms() {
        let json = serde_json::json!([
            {"feeds.*": {"queue": "feeds", "priority": 3}},
            ["mail.*", "mail"],
        ]);
        let routes = Routes::from_json(&json).unwrap();
        let feeds = routes.find("feeds.pull").unwrap();
        assert_eq!(
            (feeds.queue.as_deref(), feeds.priority),
            (Some("feeds"), Some(3))
        );
        assert_eq!(routes.find("mail.send"), Some(&Route::to("mail")));
        assert!(Routes::from_json(&serde_json::json!(5)).is_err());
    }
}
