//! What was published, free of any protocol, and the forms that wires give to it.

use std::{
    any::Any,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use super::Offset;
use parking_lot::Mutex;

/// What an event is about; each wire has its own name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Records of the room have changed.
    Records,
    /// A notice of the site's operators.
    Notice,
    /// A notice that messages may have been lost, for subscribers that joined before the log's newest gap, and for those
    /// that come back and may have missed something.
    GapNotice,
}

/// A protocol in which events are sent to its subscribers.
pub trait Wire: 'static {
    /// An event as this protocol sends it.
    type Form: Send + Sync + 'static;

    /// Makes the form of an event. Also returns the payload as a part of the form's own memory, if it is one: the event
    /// then gives up its copy.
    fn form(&self, event: &Event, payload: &Bytes) -> (Self::Form, Option<Bytes>);
}

/// A published message.
#[derive(Debug)]
pub struct Event {
    /// What it is about.
    pub kind: Kind,
    /// The room it was published to.
    pub room: Arc<str>,
    /// Its place in the log.
    pub offset: Offset,
    payload: Mutex<Bytes>,
    forms: Forms,
}

/// The forms that were asked for, as a list: few wires exist, and each appends to it once.
type Forms = OnceLock<Box<Node<dyn Any + Send + Sync>>>;

#[derive(Debug)]
struct Node<T: ?Sized> {
    next: Forms,
    /// A [`Made`] of some wire.
    form: T,
}

/// Tells the forms of two wires apart that use the same type.
struct Made<W: Wire>(W::Form);

impl Event {
    pub(super) fn new(kind: Kind, room: Arc<str>, offset: Offset, payload: Bytes) -> Self {
        Self { kind, room, offset, payload: Mutex::new(payload), forms: OnceLock::new() }
    }

    /// As it was published.
    pub(super) fn payload(&self) -> Bytes {
        self.payload.lock().clone()
    }

    /// The event as `W` sends it. The first call makes the form; all later ones, from any thread, share it for as long as
    /// the event is kept.
    pub fn form<W: Wire>(&self, wire: &W) -> &W::Form {
        let mut forms = &self.forms;
        loop {
            let node = forms.get_or_init(|| {
                let mut payload = self.payload.lock();
                let (form, shared) = wire.form(self, &payload);
                // What the bus has read it into is larger than the payload.
                *payload = shared.unwrap_or_else(|| Bytes::copy_from_slice(&payload));
                Box::new(Node { next: OnceLock::new(), form: Made::<W>(form) })
            });
            if let Some(Made(form)) = node.form.downcast_ref::<Made<W>>() {
                return form;
            }
            forms = &node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;
    use crate::hub::Epoch;

    fn event(payload: &'static [u8]) -> Event {
        let offset = Offset { epoch: Epoch(1), sequence: 2, fingerprint: 3, at: 4, gap: 5 };
        Event::new(Kind::Records, "group-1".into(), offset, Bytes::from_static(payload))
    }

    /// Puts a `!` before the payload and shares it.
    #[derive(Default)]
    struct Loud(AtomicUsize);

    impl Wire for Loud {
        type Form = Bytes;

        fn form(&self, _: &Event, payload: &Bytes) -> (Bytes, Option<Bytes>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            let form = Bytes::from([b"!", &payload[..]].concat());
            let shared = form.slice(1..);
            (form, Some(shared))
        }
    }

    /// Has the payload as it is.
    struct Plain;

    impl Wire for Plain {
        type Form = Bytes;

        fn form(&self, _: &Event, payload: &Bytes) -> (Bytes, Option<Bytes>) {
            (payload.clone(), None)
        }
    }

    #[test]
    fn a_form_is_made_once_whichever_thread_asks_first() {
        let (event, wire) = (event(b"x"), Loud::default());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    assert_eq!(event.form(&Plain), "x");
                    assert_eq!(event.form(&wire), "!x");
                });
            }
        });
        assert_eq!(wire.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_payload_that_a_form_holds_is_kept_only_there() {
        let (event, wire) = (event(b"x"), Loud::default());
        let held = event.form(&wire)[1..].as_ptr();
        assert_eq!(event.form(&Plain).as_ptr(), held);
    }
}
