/* Sessions: idle connections to the server, and what each is asked. */
#include "officed.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int sessions;

int enter_session(void) {
    if (__atomic_add_fetch(&sessions, 1, __ATOMIC_RELAXED) <= SESSIONS_MAX) return 1;
    leave_session();
    return 0;
}

void leave_session(void) { __atomic_sub_fetch(&sessions, 1, __ATOMIC_RELAXED); }

/* 0: another request may follow; -1: not; 1: not, and we are drained. */
static int serve(int conn, struct request *r) {
    if (!strcmp(r->op, "ping")) return send_text(conn, 'p', "officed 1");
    if (!strcmp(r->op, "run")) return run_attached(conn, r), -1;
    if (!strcmp(r->op, "dial")) return dial_port(conn, r), -1;
    if (!strcmp(r->op, "ssh")) return serve_ssh(conn, r), -1;
    if (!strcmp(r->op, "forwards")) return declare_forwards(conn, r);
    if (!strcmp(r->op, "drain")) return drain(conn);
    if (!strncmp(r->op, "job-", 4) && !valid_key(r->key)) return send_text(conn, '!', "key: not a valid key");
    if (!strcmp(r->op, "job-start")) return start_job(conn, r);
    if (!strcmp(r->op, "job-status")) return send_status(conn, r);
    if (!strcmp(r->op, "job-stop")) return stop_job(conn, r);
    if (!strcmp(r->op, "job-forget")) return forget_job(conn, r);
    return send_text(conn, '!', "op: this office's door does not know %.60s", r->op);
}

struct session {
    int conn;
    struct request *first;
};

static void *run_session(void *arg) {
    struct session s = *(struct session *)arg;
    free(arg);
    struct request *r = s.first;
    int over = 0;
    while (r) { /* questions and answers may follow one another on a connection; streams end it */
        over = serve(s.conn, r);
        free_request(r);
        r = over ? NULL : read_request(s.conn);
    }
    hang_up(s.conn);
    leave_session();
    if (over > 0) wait_for_server(); /* this was the last line */
    return NULL;
}

void *keep_dialling(void *unused) {
    (void)unused;
    for (int wait = REDIAL_MS_MIN;;) {
        if (wait_while_drained()) wait = REDIAL_MS_MIN;
        int conn = dial_server(door_path);
        if (conn < 0) {
            sleep_ms(wait);
            wait = wait * 2 > REDIAL_MS_MAX ? REDIAL_MS_MAX : wait * 2;
            continue;
        }
        wait = REDIAL_MS_MIN;
        struct request *r = read_request(conn);
        struct session *s = r ? malloc(sizeof *s) : NULL;
        if (!s) {
            free_request(r);
            hang_up(conn);
            sleep_ms(REDIAL_MS_MIN);
            continue;
        }
        s->conn = conn, s->first = r;
        int entered = enter_session();
        if (!entered || spawn_thread(run_session, s)) {
            if (entered) leave_session();
            send_text(conn, '!', "busy: the office has too many sessions open");
            free_request(r), free(s), hang_up(conn);
        }
    }
    return NULL;
}
