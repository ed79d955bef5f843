//! Tasks that return workflows instead of running them.

use celery::{Canvas, Signature, Task, TaskError, Tasks, Value};

use crate::State;
use crate::plain::ADD;

type Nested = Task<(), Value>;

const CHAIN_CHAIN: Nested = nested("t.integration.tasks.return_nested_signature_chain_chain");
const CHAIN_GROUP: Nested = nested("t.integration.tasks.return_nested_signature_chain_group");
const CHAIN_CHORD: Nested = nested("t.integration.tasks.return_nested_signature_chain_chord");
const GROUP_CHAIN: Nested = nested("t.integration.tasks.return_nested_signature_group_chain");
const GROUP_GROUP: Nested = nested("t.integration.tasks.return_nested_signature_group_group");
const GROUP_CHORD: Nested = nested("t.integration.tasks.return_nested_signature_group_chord");
const CHORD_CHAIN: Nested = nested("t.integration.tasks.return_nested_signature_chord_chain");
const CHORD_GROUP: Nested = nested("t.integration.tasks.return_nested_signature_chord_group");
const CHORD_CHORD: Nested = nested("t.integration.tasks.return_nested_signature_chord_chord");

const fn nested(name: &'static str) -> Nested {
    Task::new(name).params(&[])
}

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(CHAIN_CHAIN, async || chain(chain(add())).to_result())
        .with(CHAIN_GROUP, async || chain(group(add())).to_result())
        .with(CHAIN_CHORD, async || chain(chord(add())).to_result())
        .with(GROUP_CHAIN, async || group(chain(add())).to_result())
        .with(GROUP_GROUP, async || group(group(add())).to_result())
        .with(GROUP_CHORD, async || group(chord(add())).to_result())
        .with(CHORD_CHAIN, async || chord(chain(add())).to_result())
        .with(CHORD_GROUP, async || chord(group(add())).to_result())
        .with(CHORD_CHORD, async || chord(chord(add())).to_result())
}

/// Returns `add` without arguments, because the canvas is only returned.
fn add() -> Canvas {
    Signature::named(ADD.name(), (), ()).into()
}

fn chain(step: Canvas) -> Canvas {
    Canvas::chain([step])
}

fn group(member: Canvas) -> Canvas {
    Canvas::group([member])
}

fn chord(header: Canvas) -> Canvas {
    Canvas::chord([header], add())
}

/// Converts a canvas to a result.
trait ToResult {
    fn to_result(self) -> Result<Value, TaskError>;
}

impl ToResult for Canvas {
    fn to_result(self) -> Result<Value, TaskError> {
        Ok(self.to_wire()?.to_value()?)
    }
}
