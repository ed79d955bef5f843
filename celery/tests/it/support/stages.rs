//! One story on several servers: [`stories`].

/// Makes a test of each story (an async function that takes a
/// [`Setup`](super::Setup)) on each of its stages, which are the functions of
/// `Setup` called so: `redis`; `rabbitmq`, `quorum` and `native` with results on
/// Redis; `rpc`.
macro_rules! stories {
    ($($story:ident: $($stage:ident),+;)+) => {
        $(
            mod $story {
                $($crate::support::scene!($stage, $story);)+
            }
        )+
    };
}

macro_rules! scene {
    (redis, $story:ident) => {
        $crate::support::scene!(feature = "redis", redis, $story);
    };
    (rabbitmq, $story:ident) => {
        $crate::support::scene!(feature = "amqp", rabbitmq, $story);
    };
    (quorum, $story:ident) => {
        $crate::support::scene!(feature = "amqp", quorum, $story);
    };
    (native, $story:ident) => {
        $crate::support::scene!(feature = "amqp", native, $story);
    };
    (rpc, $story:ident) => {
        $crate::support::scene!(feature = "rpc", rpc, $story);
    };
    ($needed:meta, $stage:ident, $story:ident) => {
        #[cfg($needed)]
        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs servers and Python Celery; run cargo xtask test"]
        async fn $stage() {
            super::$story($crate::support::Setup::$stage()).await;
        }
    };
}

pub(crate) use {scene, stories};
