//! Cases about stored groups.

use celery_protocol::ResultTree;

use super::BackendSetup;
use crate::boundary::ChordStart;
use crate::conformance::{unique_name, wait_for};

/// A stored group is read back with its members in order, until it is forgotten.
pub async fn stored_group_is_read_back_and_forgotten(setup: &dyn BackendSetup) {
    let backend = setup.backend();
    if !backend.capabilities().groups {
        return;
    }
    let group = unique_name("group");
    assert_eq!(
        wait_for("fetch", backend.fetch_group(&group))
            .await
            .expect("fetched"),
        None
    );
    let members = (0..10).map(|n| ResultTree::task(format!("{group}-{n}")));
    let inner = ResultTree::group(format!("{group}-inner"), members.clone().collect());
    let members = members.chain([inner]).collect();
    let tree = ResultTree::group(group.as_str(), members).after(ResultTree::task("before"));
    wait_for("store", backend.store_group(&tree))
        .await
        .expect("stored");
    let found = wait_for("fetch", setup.backend().fetch_group(&group))
        .await
        .expect("fetched");
    assert_eq!(found, Some(tree));
    wait_for("forget", backend.forget_group(&group))
        .await
        .expect("forgotten");
    let found = wait_for("fetch", backend.fetch_group(&group)).await;
    assert_eq!(found.expect("fetched"), None);
}

/// Beginning a chord twice succeeds. Where the backend stores groups, the header
/// of the chord is one of them.
pub async fn chord_header_is_stored_as_group(setup: &dyn BackendSetup) {
    let backend = setup.backend();
    let Some(chords) = backend.chords() else {
        return;
    };
    let group = unique_name("chord");
    let members = vec![ResultTree::task("a"), ResultTree::group("b", Vec::new())];
    let header = ResultTree::group(group.as_str(), members);
    let chord = ChordStart::new(group.as_str(), 2, &header);
    let started = wait_for("begin", chords.begin(&chord)).await;
    started.expect("started");
    let again = wait_for("begin", chords.begin(&chord)).await;
    again.expect("started again");
    if !backend.capabilities().groups {
        return;
    }
    let found = wait_for("fetch", setup.backend().fetch_group(&group)).await;
    assert_eq!(found.expect("fetched"), Some(header));
}
