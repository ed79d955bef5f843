//! One story on several servers: [`for_each_broker`].

/// Makes a test of each story (an async function that takes a
/// [`Setup`](super::Setup)) on each of its stages, which are the functions of
/// `Setup` called so: `redis`; `rabbitmq`, `quorum` and `native` with results on
/// Redis; `rpc`.
macro_rules! for_each_broker {
    ($($test:ident: $($setup:ident),+;)+) => {
        $(
            mod $test {
                $($crate::support::broker_test!($setup, $test);)+
            }
        )+
    };
}

macro_rules! broker_test {
    (redis, $test:ident) => {
        $crate::support::broker_test!(feature = "redis", redis, $test);
    };
    (rabbitmq, $test:ident) => {
        $crate::support::broker_test!(feature = "amqp", rabbitmq, $test);
    };
    (quorum, $test:ident) => {
        $crate::support::broker_test!(feature = "amqp", quorum, $test);
    };
    (native, $test:ident) => {
        $crate::support::broker_test!(feature = "amqp", native, $test);
    };
    (rpc, $test:ident) => {
        $crate::support::broker_test!(feature = "rpc", rpc, $test);
    };
    ($needed:meta, $setup:ident, $test:ident) => {
        #[cfg($needed)]
        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs servers and Python Celery; run cargo xtask test"]
        async fn $setup() {
            super::$test($crate::support::Setup::$setup()).await;
        }
    };
}

pub(crate) use {broker_test, for_each_broker};
