//! Finds the messages of a channel that RabbitMQ has returned. Pure.
//!
//! RabbitMQ sends `basic.return` for a message that no queue receives, and then
//! confirms it. lapin keeps the returned messages of a channel in a queue, and each
//! confirm takes the first one out of it: a confirm may carry the return of another
//! message, and the confirms of one `basic.ack` (`multiple`) are resolved in any
//! order. [`UnconfirmedMessages`] assigns the returns by the identity of the messages.
//!
//! A confirm without a return proves that the queue was empty when the confirm was
//! resolved: everything returned until then has been handed out, to confirms that
//! were resolved earlier. All of those have been read at the latest by
//! [`decide`](UnconfirmedMessages::decide), which is called once no resolved confirm
//! is unread. Its rules:
//!
//! - A confirmed message is returned if any confirm has carried it.
//! - Otherwise, a message whose confirm carried nothing is in a queue.
//! - A message whose confirm carried another one is undecided until a message that was
//!   sent later is confirmed without a return, or nothing is unconfirmed.

use std::collections::BTreeMap;

/// A message that the server has returned.
pub(super) trait Returned<I> {
    /// Reports whether it is the sent message with this identity.
    fn is_same(&self, sent: &I) -> bool;

    /// Returns the server's reason.
    fn reason(&self) -> &str;
}

/// The messages of one channel that are sent and not decided yet, each with the `T`
/// that its outcome is reported to.
#[derive(Debug)]
pub(super) struct UnconfirmedMessages<I, R, T> {
    messages: BTreeMap<u64, Unconfirmed<I, T>>,
    /// The number of the next message.
    next: u64,
    /// The number after that of the last message that was confirmed without a return.
    emptied: u64,
    /// The number of messages without a confirm.
    unconfirmed: usize,
    /// The messages that are confirmed and not decided yet.
    undecided: Vec<u64>,
    /// The messages that other confirms have carried.
    returned: Vec<R>,
}

#[derive(Debug)]
struct Unconfirmed<I, T> {
    identity: I,
    target: T,
    confirm: Confirm,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Confirm {
    Missing,
    /// Confirmed with the return of this message, for this reason.
    Returned(String),
    /// Confirmed without a return.
    Empty,
    /// Confirmed with the return of another message, before the message with this
    /// number was sent.
    Foreign(u64),
    /// Refused by the server.
    Refused,
}

/// The outcome of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The message is in a queue.
    Accepted,
    /// No queue receives the message, for this reason.
    Returned(String),
    /// The server refused the message.
    Refused,
}

impl<I, R, T> Default for UnconfirmedMessages<I, R, T> {
    fn default() -> Self {
        Self {
            messages: BTreeMap::new(),
            next: 0,
            emptied: 0,
            unconfirmed: 0,
            undecided: Vec::new(),
            returned: Vec::new(),
        }
    }
}

impl<I, R: Returned<I>, T> UnconfirmedMessages<I, R, T> {
    /// Records a message that is sent, and returns its number.
    pub(super) fn insert(&mut self, identity: I, target: T) -> u64 {
        let number = self.next;
        self.next += 1;
        self.unconfirmed += 1;
        let message = Unconfirmed {
            identity,
            target,
            confirm: Confirm::Missing,
        };
        self.messages.insert(number, message);
        number
    }

    /// Removes a message whose channel has failed.
    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let removed = self.messages.remove(&number)?;
        self.unconfirmed -= usize::from(removed.confirm == Confirm::Missing);
        Some(removed.target)
    }

    /// Returns the targets of the messages that are not decided yet, the first sent one
    /// first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.messages.values().map(|message| &message.target)
    }

    /// Returns the identities of the messages that are not decided yet.
    pub(super) fn identities(&self) -> impl Iterator<Item = &I> {
        self.messages.values().map(|message| &message.identity)
    }

    /// Records a confirm and the returned message that it carries.
    pub(super) fn confirm(&mut self, number: u64, is_accepted: bool, returned: Option<R>) {
        if returned.is_none() {
            self.emptied = self.emptied.max(number + 1);
        }
        let Some(message) = self.messages.get_mut(&number) else {
            self.returned.extend(returned);
            return;
        };
        self.unconfirmed -= usize::from(message.confirm == Confirm::Missing);
        message.confirm = match returned {
            Some(returned) if returned.is_same(&message.identity) => {
                Confirm::Returned(returned.reason().to_owned())
            }
            returned => {
                let is_foreign = returned.is_some();
                self.returned.extend(returned);
                match is_accepted {
                    false => Confirm::Refused,
                    true if is_foreign => Confirm::Foreign(self.next),
                    true => Confirm::Empty,
                }
            }
        };
        self.undecided.push(number);
    }

    /// Removes the messages whose outcome is known now. The caller has read every
    /// confirm that is resolved.
    pub(super) fn decide(&mut self) -> Vec<(T, Outcome)> {
        let (emptied, is_complete) = (self.emptied, self.unconfirmed == 0);
        let mut decided = Vec::with_capacity(self.undecided.len());
        let (messages, returned) = (&mut self.messages, &mut self.returned);
        self.undecided.retain(|number| {
            let Some(message) = messages.get(number) else {
                return false;
            };
            let is_same = |returned: &R| returned.is_same(&message.identity);
            let outcome = match (&message.confirm, returned.iter().position(is_same)) {
                (Confirm::Returned(reason), _) => Outcome::Returned(reason.clone()),
                (_, Some(own)) => Outcome::Returned(returned.swap_remove(own).reason().to_owned()),
                (Confirm::Refused, None) => Outcome::Refused,
                (Confirm::Empty, None) => Outcome::Accepted,
                (Confirm::Foreign(next), None) if is_complete || emptied > *next => {
                    Outcome::Accepted
                }
                (Confirm::Foreign(_) | Confirm::Missing, None) => return true,
            };
            decided.extend(
                messages
                    .remove(number)
                    .map(|message| (message.target, outcome)),
            );
            false
        });
        if self.messages.is_empty() {
            // Those of messages whose channel has failed.
            self.returned.clear();
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// An event between client and server about the message with this number.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Event {
        Sent(usize),
        Returned(usize),
        Confirmed(usize),
    }

    /// A channel of lapin: the queue of returned messages and the resolved confirms.
    #[derive(Default)]
    struct ChannelModel {
        returned: VecDeque<usize>,
        /// The resolved confirms that were not read yet, each with the message that it
        /// carries.
        resolved: VecDeque<(usize, Option<usize>)>,
    }

    impl ChannelModel {
        fn handle(&mut self, event: Event) {
            match event {
                Event::Sent(_) => {}
                Event::Returned(number) => self.returned.push_back(number),
                Event::Confirmed(number) => {
                    let carried = self.returned.pop_front();
                    self.resolved.push_back((number, carried));
                }
            }
        }
    }

    /// When the reader reads the resolved confirms.
    #[derive(Clone, Copy, Debug)]
    enum Reading {
        AfterEach,
        AtTheEnd,
        /// After the events whose bits are set; backwards if `reversed`.
        Some {
            mask: u64,
            reversed: bool,
        },
    }

    impl Returned<Self> for usize {
        fn is_same(&self, sent: &Self) -> bool {
            self == sent
        }

        fn reason(&self) -> &str {
            "NO_ROUTE"
        }
    }

    const MESSAGES: usize = 4;

    /// Sends messages in this order of events, and returns the outcome of each.
    fn run(
        events: &[Event],
        identities: [usize; MESSAGES],
        reading: Reading,
    ) -> [Option<Outcome>; MESSAGES] {
        let mut channel = ChannelModel::default();
        let mut messages = UnconfirmedMessages::default();
        let mut outcomes = [const { None }; MESSAGES];
        for (at, event) in events.iter().enumerate() {
            if let Event::Sent(number) = event {
                assert_eq!(
                    messages.insert(identities[*number], *number),
                    *number as u64
                );
            }
            channel.handle(*event);
            let (is_read, reversed) = match reading {
                Reading::AfterEach => (true, false),
                Reading::AtTheEnd => (false, false),
                Reading::Some { mask, reversed } => (mask >> at & 1 == 1, reversed),
            };
            if is_read || at + 1 == events.len() {
                let mut read: Vec<_> = channel.resolved.drain(..).collect();
                if reversed {
                    read.reverse();
                }
                for (number, carried) in read {
                    let returned = carried.map(|one| identities[one]);
                    messages.confirm(number as u64, true, returned);
                }
                for (number, outcome) in messages.decide() {
                    assert_eq!(outcomes[number].replace(outcome), None, "{events:?}");
                }
            }
        }
        assert!(messages.messages.is_empty(), "{events:?} {reading:?}");
        assert!(messages.returned.is_empty(), "{events:?} {reading:?}");
        outcomes
    }

    /// Calls `check` with every order of the events of four messages, of which those in
    /// `unroutable` are returned. Messages are sent in the order of their numbers.
    fn for_each_order(unroutable: u8, check: &mut impl FnMut(&[Event])) {
        fn extend(
            unroutable: u8,
            steps: &mut [usize; MESSAGES],
            events: &mut Vec<Event>,
            check: &mut impl FnMut(&[Event]),
        ) {
            let mut is_complete = true;
            for number in 0..MESSAGES {
                let event = match steps[number] {
                    0 if number == 0 || steps[number - 1] > 0 => Event::Sent(number),
                    1 if unroutable >> number & 1 == 1 => Event::Returned(number),
                    1 | 2 => Event::Confirmed(number),
                    _ => continue,
                };
                is_complete = false;
                let before = steps[number];
                steps[number] = match event {
                    Event::Sent(_) => 1,
                    Event::Returned(_) => 2,
                    Event::Confirmed(_) => 3,
                };
                events.push(event);
                extend(unroutable, steps, events, check);
                events.pop();
                steps[number] = before;
            }
            if is_complete {
                check(events);
            }
        }
        extend(unroutable, &mut [0; MESSAGES], &mut Vec::new(), check);
    }

    #[test]
    fn returned_messages_are_found_in_every_interleaving() {
        let mut random = 1_u64;
        let mut orders = 0;
        for unroutable in 0..1 << MESSAGES {
            for_each_order(unroutable, &mut |events| {
                orders += 1;
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                let some = |reversed| Reading::Some {
                    mask: random >> 40,
                    reversed,
                };
                for reading in [
                    Reading::AfterEach,
                    Reading::AtTheEnd,
                    some(false),
                    some(true),
                ] {
                    let outcomes = run(events, [0, 1, 2, 3], reading);
                    for (number, outcome) in outcomes.iter().enumerate() {
                        let is_returned = matches!(outcome, Some(Outcome::Returned(_)));
                        let expected = unroutable >> number & 1 == 1;
                        assert_eq!(is_returned, expected, "{number} {events:?} {reading:?}");
                    }
                }
            });
        }
        println!("{orders} orders");
    }

    #[test]
    fn equal_messages_are_returned_as_often_as_the_server_returned_one() {
        for unroutable in 0..1_u8 << MESSAGES {
            for_each_order(unroutable, &mut |events| {
                let outcomes = run(events, [0, 0, 0, 1], Reading::AfterEach);
                let returned = |range: std::ops::Range<usize>| {
                    let returned = outcomes[range].iter();
                    returned
                        .filter(|outcome| matches!(outcome, Some(Outcome::Returned(_))))
                        .count()
                };
                let expected = (unroutable & 7).count_ones() as usize;
                assert_eq!(returned(0..3), expected, "{unroutable:b} {events:?}");
                assert_eq!(returned(3..4), (unroutable >> 3) as usize);
            });
        }
    }

    #[test]
    fn message_without_confirm_does_not_hold_up_later_ones() {
        let mut messages = UnconfirmedMessages::default();
        for number in 0..3 {
            messages.insert(number, number);
        }
        // The confirm of 1 carries the return of 2, and 0 is never confirmed.
        messages.confirm(1, true, Some(2));
        assert_eq!(messages.decide(), []);
        messages.confirm(2, true, None);
        let unroutable = Outcome::Returned("NO_ROUTE".to_owned());
        assert_eq!(messages.decide(), [(2, unroutable)]);
        assert_eq!(messages.insert(3, 3), 3);
        messages.confirm(3, true, None);
        assert_eq!(
            messages.decide(),
            [(1, Outcome::Accepted), (3, Outcome::Accepted)]
        );
        assert_eq!(messages.remove(0), Some(0));
        assert!(messages.messages.is_empty());
    }

    #[test]
    fn refused_message_is_not_accepted() {
        let mut messages = UnconfirmedMessages::<usize, usize, ()>::default();
        messages.insert(0, ());
        messages.confirm(0, false, None);
        assert_eq!(messages.decide(), [((), Outcome::Refused)]);
    }
}
