//! The time of the first poll.

use super::actor::{self, Actor};
use super::{LeaseSuite, checkpoint, shard};
use crate::store::lease::{AdminEdit, Change, EditOutcome, IfLeased};

fn begin(first_poll: u64) -> Change {
    Change::Begin { first_poll }
}

impl LeaseSuite<'_> {
    pub(super) async fn keeps_the_first_poll(&self) {
        let scope = self.scope("beginning");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange([begin(7)]).await;
        assert_eq!(a.known.first_poll, 7, "the time of the first poll is stored");
        a.changes_nothing([begin(5)], "the time of the first poll is kept").await;
        let mut b = Actor::new(self.store, &scope, "b");
        assert_eq!(b.look().await.first_poll, 7, "other workers see the first poll");
        a.exchange([actor::add(0)]).await;
        assert_eq!(a.known.first_poll, 0, "adding a shard drops the first poll");
        a.changes_nothing([begin(9)], "a table with a shard takes no first poll").await;
        assert_eq!(
            self.edit(&scope, &AdminEdit::Clear, IfLeased::Force).await,
            EditOutcome::Applied,
            "a forced edit is applied"
        );
        a.look().await;
        a.exchange([begin(9)]).await;
        assert_eq!(a.known.first_poll, 9, "a cleared table takes another first poll");

        let scope = self.scope("beginning-moved");
        let mut a = Actor::new(self.store, &scope, "a");
        let positions = vec![(shard(0), checkpoint("TRIM_HORIZON"))];
        self.edit(&scope, &AdminEdit::Set { positions }, IfLeased::Refuse).await;
        a.exchange([begin(7)]).await;
        assert_eq!(a.known.first_poll, 0, "a table with a position takes no first poll");
    }
}
