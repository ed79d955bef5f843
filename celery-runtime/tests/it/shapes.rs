//! Canvases of any shape: what comes of them is what they say, and no message on
//! the way is larger than the canvas.

use std::sync::Arc;

use celery_protocol::Value;
use celery_runtime::{Canvas, Task, TaskError, Tasks};
use proptest::prelude::*;

use crate::counting::Counting;
use crate::support::{Running, Setup, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const SUM: Task<(Value,), i64> = Task::new("tasks.sum").params(&["numbers"]);

/// What one task may add to a message, and what every message has.
const PER_TASK: usize = 1_000;
const MESSAGE: usize = 2_000;

/// What gets a number and gives one.
#[derive(Clone, Debug)]
enum Shape {
    /// Adds this to it.
    Add(i64),
    /// Twice this, whatever it got.
    Double(i64),
    /// One after the other.
    Chain(Vec<Self>),
    /// All get it, and the sum of all goes through the rest.
    Chord(Vec<Member>, Vec<Self>),
}

/// A part of a chord's header.
#[derive(Clone, Debug)]
enum Member {
    One(Shape),
    /// A group inside, of which the body gets a list.
    Group(Vec<Shape>),
    /// The same behind a step.
    Behind(Shape, Vec<Shape>),
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
            Self::Behind(first, shapes) => first.canvas().then(group(shapes)),
        }
    }

    fn value(&self, given: i64) -> i64 {
        let sum = |shapes: &[Shape], given| shapes.iter().map(|shape| shape.value(given)).sum();
        match self {
            Self::One(shape) => shape.value(given),
            Self::Group(shapes) => sum(shapes, given),
            Self::Behind(first, shapes) => sum(shapes, first.value(given)),
        }
    }

    fn tasks(&self) -> usize {
        match self {
            Self::One(shape) => shape.tasks(),
            Self::Group(shapes) => tasks_of(shapes),
            Self::Behind(first, shapes) => first.tasks() + tasks_of(shapes),
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
            Ok::<_, TaskError>(deep(&numbers))
        })
}

/// The sum of all numbers in lists of lists.
fn deep(value: &Value) -> i64 {
    match value {
        Value::Array(all) => all.iter().map(deep).sum(),
        number => number.as_i64().unwrap(),
    }
}

/// What comes of a canvas, and the sizes of all messages that were sent for it.
async fn run(canvas: Canvas) -> (i64, Vec<usize>) {
    let setup = Setup::new();
    let broker = Counting::new(&setup.broker);
    let app = broker.app(&setup);
    let app = app.with_backend(Arc::new(setup.backend.clone()));
    let _worker = Running::start(app.worker(tasks()).concurrency(4));
    let result = app.client().apply(canvas).await.unwrap();
    let value = within(60, result.get()).await.unwrap();
    (deep(&value), broker.sizes())
}

/// The same, where no time passes.
fn run_at_once(canvas: Canvas) -> (i64, Vec<usize>) {
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
            1 => (inner.clone(), several()).prop_map(|(one, all)| Member::Behind(one, all)),
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
    fn a_canvas_gives_what_it_says_in_messages_that_it_fits(shape in shapes()) {
        let (value, sizes) = run_at_once(shape.canvas().given((1,)));
        prop_assert_eq!(value, shape.value(1));
        prop_assert_eq!(sizes.len(), shape.tasks());
        let largest = sizes.iter().max().copied().unwrap_or_default();
        let most = MESSAGE + PER_TASK * shape.tasks();
        prop_assert!(largest <= most, "{largest} bytes for {} tasks", shape.tasks());
    }
}

/// So many chords of ten, one after the other.
fn chords(count: usize) -> Shape {
    let header = || (0..10).map(|number| Member::One(Shape::Add(number)));
    let chord = |_| Shape::Chord(header().collect(), Vec::new());
    Shape::Chain((0..count).map(chord).collect())
}

#[test]
fn chords_in_a_row_grow_by_what_is_added() {
    let largest = |count| {
        let shape = chords(count);
        let (value, sizes) = run_at_once(shape.canvas().given((0,)));
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

/// The body is in the message once, and not in each member of each group.
#[test]
fn groups_behind_steps_do_not_multiply_the_body() {
    let fan = |first: Shape, width: i64| {
        let members = (0..width).map(Shape::Add).collect();
        Shape::Chord(vec![Member::Behind(first, members)], Vec::new())
    };
    let nested = (0..5).fold(Shape::Add(1), |inner, _| fan(inner, 5));
    let wide = Shape::Chain(vec![fan(Shape::Add(1), 20), chords(5)]);
    for shape in [nested, wide] {
        let (value, sizes) = run_at_once(shape.canvas().given((1,)));
        assert_eq!(value, shape.value(1));
        let largest = sizes.iter().max().copied().unwrap();
        let most = MESSAGE + PER_TASK * shape.tasks();
        assert!(largest <= most, "{largest} bytes, {} tasks", shape.tasks());
    }
}
