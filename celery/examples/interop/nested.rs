//! Tasks that return workflows instead of running them.

use celery::{Canvas, Signature, Task, TaskError, Tasks, Value};

use crate::World;
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

pub(crate) fn add_to(tasks: Tasks<World>) -> Tasks<World> {
    tasks
        .with(CHAIN_CHAIN, async || chain(chain(add())).written())
        .with(CHAIN_GROUP, async || chain(group(add())).written())
        .with(CHAIN_CHORD, async || chain(chord(add())).written())
        .with(GROUP_CHAIN, async || group(chain(add())).written())
        .with(GROUP_GROUP, async || group(group(add())).written())
        .with(GROUP_CHORD, async || group(chord(add())).written())
        .with(CHORD_CHAIN, async || chord(chain(add())).written())
        .with(CHORD_GROUP, async || chord(group(add())).written())
        .with(CHORD_CHORD, async || chord(chord(add())).written())
}

/// It lacks its arguments: nobody sends it.
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

/// A canvas as a result.
trait Written {
    fn written(self) -> Result<Value, TaskError>;
}

impl Written for Canvas {
    fn written(self) -> Result<Value, TaskError> {
        Ok(self.to_wire()?.to_value()?)
    }
}
