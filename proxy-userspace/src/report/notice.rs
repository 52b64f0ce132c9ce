//! What people should be told through the API server, as Events. Telling costs nothing: where nobody takes a notice on,
//! or too many wait, it is dropped.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Notices that may wait to be told.
const WAITING: usize = 32;

/// One of them (spec §5.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whose Event it is.
    pub about: About,
    /// Something is wrong.
    pub warning: bool,
    /// As kube-proxy has it.
    pub reason: &'static str,
    /// Likewise.
    pub action: &'static str,
    /// For people; may be empty.
    pub note: String,
}

/// What a [`Notice`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// The own Node.
    Node,
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// A notice on its way. Dropping it says that it was dealt with.
#[derive(Debug)]
pub struct Told {
    /// What to tell.
    pub notice: Notice,
    _done: Option<oneshot::Sender<()>>,
}

/// Takes notices on.
#[derive(Clone, Debug)]
pub struct Notices(mpsc::Sender<Told>);

impl Notices {
    /// And whoever tells them.
    pub fn new() -> (Self, mpsc::Receiver<Told>) {
        let (to, from) = mpsc::channel(WAITING);
        (Self(to), from)
    }

    /// Tell it when there is time.
    pub fn tell(&self, notice: Notice) {
        self.pass_on(Told { notice, _done: None });
    }

    /// Tell it, and wait until it is dealt with, but not for longer than `limit`: when the agent is about to end.
    pub async fn tell_at_last(&self, notice: Notice, limit: Duration) {
        let (done, is_done) = oneshot::channel();
        self.pass_on(Told { notice, _done: Some(done) });
        let _ = tokio::time::timeout(limit, is_done).await;
    }

    fn pass_on(&self, told: Told) {
        if let Err(error) = self.0.try_send(told) {
            tracing::debug!("an Event is dropped: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(reason: &'static str) -> Notice {
        Notice { about: About::Node, warning: false, reason, action: "Test", note: String::new() }
    }

    #[tokio::test]
    async fn notices_that_nobody_takes_on_are_dropped_without_waiting() {
        let (notices, mut from) = Notices::new();
        for _ in 0..2 * WAITING {
            notices.tell(notice("Full"));
        }
        let mut count = 0;
        while from.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, WAITING);
        drop(from);
        notices.tell(notice("Gone"));
        notices.tell_at_last(notice("Gone"), Duration::MAX).await;
    }

    #[tokio::test]
    async fn the_last_notice_is_waited_for_until_it_is_dealt_with() {
        let (notices, mut from) = Notices::new();
        let tell = notices.tell_at_last(notice("Last"), Duration::MAX);
        let deal = async { from.recv().await.map(|told| told.notice.reason) };
        assert_eq!(tokio::join!(tell, deal).1, Some("Last"));
    }
}
