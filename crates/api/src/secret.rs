//! What messages with passwords and tokens show of themselves: no log, trace or panic may hold more.

use std::fmt;

use crate::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
};

macro_rules! shows {
    ($($message:ident { $($field:ident),* })*) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($field), &self.$field))*
                    .finish_non_exhaustive()
            }
        })*
    };
}

shows! {
    AuthenticateRequest { name }
    AuthenticateResponse { header }
    AuthUserAddRequest { name, options }
    AuthUserChangePasswordRequest { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_tokens_do_not_show() {
        let canary = || "canary-91d0".to_owned();
        let login = AuthenticateRequest { password: canary(), ..Default::default() };
        let answer = AuthenticateResponse { token: canary(), ..Default::default() };
        let add = AuthUserAddRequest { password: canary(), ..Default::default() };
        let change = AuthUserChangePasswordRequest { password: canary(), ..Default::default() };
        let shown = format!("{login:?}{answer:?}{add:?}{change:?}");
        assert!(!shown.contains(&canary()), "{shown}");
    }
}
