//! Random canvases: they return the expected value, and the size of each message is
//! bounded by the size of the canvas.

use std::sync::Arc;

use celery_protocol::Value;
use celery_runtime::{Canvas, Task, TaskError, Tasks};
use proptest::prelude::*;

use crate::counting_broker::CountingBroker;
use crate::support::{Running, Setup, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const SUM: Task<(Value,), i64> = Task::new("tasks.sum").params(&["numbers"]);

/// The maximum number of bytes that one task adds to a message.
const PER_TASK: usize = 1_000;
/// The maximum number of bytes of a message without tasks.
const MESSAGE: usize = 2_000;

/// A canvas that takes a number and returns a number.
#[derive(Clone, Debug)]
enum Shape {
    /// Adds this number.
    Add(i64),
    /// Returns this number doubled; the given number is ignored.
    Double(i64),
    /// Runs the steps in order.
    Chain(Vec<Self>),
    /// Runs the members with the number; their sum goes through the rest.
    Chord(Vec<Member>, Vec<Self>),
}

/// A member of a chord's header.
#[derive(Clone, Debug)]
enum Member {
    One(Shape),
    /// A nested group, whose results are a list for the body.
    Group(Vec<Shape>),
    /// A step followed by a group.
    StepThenGroup(Shape, Vec<Shape>),
}

impl Shape {
    fn canvas(&self) -> Canvas {
        match self {
            Self::Add(number) => ADD.p((*number,)).into(),
            Self::Double(number) => ADD.si((*number, *number)).into(),
            Self::Chain(steps) => chain(Canvas::chain([]), steps),
            Self::Chord(header, rest) => {
                let header = Canvas::group(header.iter().map(Member::canvas));
                chain(header.then(SUM.p(()).into()), rest)
            }
        }
    }

    fn value(&self, given: i64) -> i64 {
        let through = |steps: &[Self], given| steps.iter().fold(given, |n, step| step.value(n));
        match self {
            Self::Add(number) => given + number,
            Self::Double(number) => 2 * number,
            Self::Chain(steps) => through(steps, given),
            Self::Chord(header, rest) => {
                let sum = header.iter().map(|member| member.value(given)).sum();
                through(rest, sum)
            }
        }
    }

    fn tasks(&self) -> usize {
        match self {
            Self::Add(_) | Self::Double(_) => 1,
            Self::Chain(steps) => tasks_of(steps),
            Self::Chord(header, rest) => {
                header.iter().map(Member::tasks).sum::<usize>() + 1 + tasks_of(rest)
            }
        }
    }
}

impl Member {
    fn canvas(&self) -> Canvas {
        let group = |shapes: &[Shape]| Canvas::group(shapes.iter().map(Shape::canvas));
        match self {
            Self::One(shape) => shape.canvas(),
            Self::Group(shapes) => group(shapes),
            Self::StepThenGroup(first, shapes) => first.canvas().then(group(shapes)),
        }
    }

    fn value(&self, given: i64) -> i64 {
        let sum = |shapes: &[Shape], given| shapes.iter().map(|shape| shape.value(given)).sum();
        match self {
            Self::One(shape) => shape.value(given),
            Self::Group(shapes) => sum(shapes, given),
            Self::StepThenGroup(first, shapes) => sum(shapes, first.value(given)),
        }
    }

    fn tasks(&self) -> usize {
        match self {
            Self::One(shape) => shape.tasks(),
            Self::Group(shapes) => tasks_of(shapes),
            Self::StepThenGroup(first, shapes) => first.tasks() + tasks_of(shapes),
        }
    }
}

fn chain(start: Canvas, steps: &[Shape]) -> Canvas {
    let steps = steps.iter().map(Shape::canvas);
    steps.fold(start, Canvas::then)
}

fn tasks_of(shapes: &[Shape]) -> usize {
    shapes.iter().map(Shape::tasks).sum()
}

fn tasks() -> Tasks {
    Tasks::new()
        .with(ADD, async |x: i64, y: i64| Ok::<_, TaskError>(x + y))
        .with(SUM, async |numbers: Value| {
            Ok::<_, TaskError>(nested_sum(&numbers))
        })
}

/// Returns the sum of all numbers in nested lists.
fn nested_sum(value: &Value) -> i64 {
    match value {
        Value::Array(all) => all.iter().map(nested_sum).sum(),
        number => number.as_i64().unwrap(),
    }
}

/// Returns the result of a canvas, and the sizes of all messages that were sent.
async fn run(canvas: Canvas) -> (i64, Vec<usize>) {
    let setup = Setup::new();
    let broker = CountingBroker::new(&setup.broker);
    let app = broker.app(&setup);
    let app = app.with_backend(Arc::new(setup.backend.clone()));
    let _worker = Running::start(app.worker(tasks()).concurrency(4));
    let result = app.client().apply(canvas).await.unwrap();
    let value = within(60, result.get()).await.unwrap();
    (nested_sum(&value), broker.sizes())
}

/// Runs a canvas with a paused clock.
fn run_paused(canvas: Canvas) -> (i64, Vec<usize>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(run(canvas))
}

fn shapes() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        4 => (0..100_i64).prop_map(Shape::Add),
        1 => (0..100_i64).prop_map(Shape::Double),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        let several = || proptest::collection::vec(inner.clone(), 1..4);
        let member = prop_oneof![
            6 => inner.clone().prop_map(Member::One),
            1 => several().prop_map(Member::Group),
            1 => (inner.clone(), several()).prop_map(|(one, all)| Member::StepThenGroup(one, all)),
        ];
        let header = proptest::collection::vec(member, 1..5);
        prop_oneof![
            several().prop_map(Shape::Chain),
            (header, proptest::collection::vec(inner, 0..3))
                .prop_map(|(header, rest)| Shape::Chord(header, rest)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn random_canvas_returns_value_in_bounded_messages(shape in shapes()) {
        let (value, sizes) = run_paused(shape.canvas().given((1,)));
        prop_assert_eq!(value, shape.value(1));
        prop_assert_eq!(sizes.len(), shape.tasks());
        let largest = sizes.iter().max().copied().unwrap_or_default();
        let most = MESSAGE + PER_TASK * shape.tasks();
        prop_assert!(largest <= most, "{largest} bytes for {} tasks", shape.tasks());
    }
}

/// Returns this many chords of ten members in a chain.
fn chords(count: usize) -> Shape {
    let header = || (0..10).map(|number| Member::One(Shape::Add(number)));
    let chord = |_| Shape::Chord(header().collect(), Vec::new());
    Shape::Chain((0..count).map(chord).collect())
}

#[test]
fn message_of_chained_chords_grows_linearly() {
    let largest = |count| {
        let shape = chords(count);
        let (value, sizes) = run_paused(shape.canvas().given((0,)));
        assert_eq!(value, shape.value(0));
        assert_eq!(sizes.len(), 11 * count);
        let largest = sizes.iter().max().copied().unwrap();
        println!(
            "{count} chords of ten in a chain: the largest message has {largest} bytes, \
             all together {}",
            sizes.iter().sum::<usize>()
        );
        largest
    };
    let [three, six, twelve] = [3, 6, 12].map(largest);
    assert!(six <= 64 << 10, "{six} bytes");
    let steps = (six - three, (twelve - six) / 2);
    assert!(steps.1 <= steps.0 * 11 / 10, "{steps:?}");
}

/// A message contains the body once, and not in each member of each group.
#[test]
fn nested_groups_do_not_multiply_body() {
    let fan = |first: Shape, width: i64| {
        let members = (0..width).map(Shape::Add).collect();
        Shape::Chord(vec![Member::StepThenGroup(first, members)], Vec::new())
    };
    let nested = (0..5).fold(Shape::Add(1), |inner, _| fan(inner, 5));
    let wide = Shape::Chain(vec![fan(Shape::Add(1), 20), chords(5)]);
    for shape in [nested, wide] {
        let (value, sizes) = run_paused(shape.canvas().given((1,)));
        assert_eq!(value, shape.value(1));
        let largest = sizes.iter().max().copied().unwrap();
        let most = MESSAGE + PER_TASK * shape.tasks();
        assert!(largest <= most, "{largest} bytes, {} tasks", shape.tasks());
    }
}
