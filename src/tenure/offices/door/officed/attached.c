/* Attached commands: they end with their connection. */
#include "officed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int open_pty(const char *size, int *master, int *slave) {
    struct winsize w = {.ws_row = 24, .ws_col = 80};
    sscanf(size, "%hu %hu", &w.ws_row, &w.ws_col);
    *master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*master < 0) return -1;
    char name[64];
    if (unlockpt(*master) || ptsname_r(*master, name, sizeof name) ||
        (*slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
        close(*master);
        return -1;
    }
    ioctl(*slave, TIOCSWINSZ, &w);
    return 0;
}

/* Moves what is readable on `from` to the connection. Returns 1 when more may come, 0 at its end, -1 when the server left. */
static int forward_output(int conn, int from, char type, char *buf) {
    ssize_t n = read(from, buf + 5, CHUNK_BYTES);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? 1 : 0; /* a PTY ends with EIO */
    if (n == 0) return 0;
    return send_in_place(conn, type, buf, (uint32_t)n) ? -1 : 1;
}

/* The server may be writing (the end of its input) while the command ends. Were the connection closed under that, the server
 * would find a broken one before it had read everything; so it closes first. */
static void wait_until_closed(int conn) {
    struct pollfd p = {conn, POLLIN, 0};
    char buf[4096];
    while (poll(&p, 1, CLOSE_WAIT_MS) > 0 && read(conn, buf, sizeof buf) > 0) {}
}

/* While input waits for a command that does not read, nothing is read from the connection either, and gVisor tells of a
 * server that left only behind all that it has sent. So it is asked: an empty frame cannot be sent to nobody. */
static int is_there(int conn) {
    struct pollfd p = {conn, POLLOUT, 0};
    char room[5];
    return poll(&p, 1, 0) <= 0 || !(p.revents & POLLOUT) || !send_in_place(conn, '1', room, 0);
}

static int attached, telling; /* `telling`: those of `attached` whose end the server is being told */
static pthread_mutex_t attached_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t attached_changed;

void init_attached(void) { init_cond(&attached_changed); }

static void count(int commands, int ends) {
    pthread_mutex_lock(&attached_lock);
    attached += commands, telling += ends;
    pthread_cond_broadcast(&attached_changed);
    pthread_mutex_unlock(&attached_lock);
}

/* The server may know that a command has ended before we have put it away, and ask at once: so those are waited for. */
size_t list_attached(char *at, size_t room) {
    pthread_mutex_lock(&attached_lock);
    for (int64_t until = now_ms() + DRAIN_MS; attached && attached == telling && now_ms() < until;)
        wait_cond(&attached_changed, &attached_lock, until - now_ms());
    int n = attached;
    pthread_mutex_unlock(&attached_lock);
    return n ? add_line(at, room, "commands %d", n) : 0;
}

static int attend(int conn, struct request *r, int *ends);

void run_attached(int conn, struct request *r) {
    int ends = 0;
    count(1, 0);
    int told = attend(conn, r, &ends);
    count(-1, -ends);
    if (told) wait_until_closed(conn);
}

/* Whether the server was told how the command ended. `ends` is what was added to `telling`. */
static int attend(int conn, struct request *r, int *ends) {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, master = -1, slave = -1;
    char why[400] = "setup: no descriptors left in the office";
    struct child *c = NULL;
    if (r->tty ? !open_pty(r->tty, &master, &slave)
               : !pipe2(in, O_CLOEXEC) && !pipe2(out, O_CLOEXEC) && !pipe2(err, O_CLOEXEC))
        c = r->tty ? spawn(r, slave, slave, slave, 1, why, sizeof why) : spawn(r, in[0], out[1], err[1], 0, why, sizeof why);
    else if (r->tty)
        snprintf(why, sizeof why, "tty: the office has no terminals left");
    close(in[0]), close(out[1]), close(err[1]), close(slave);
    int to = r->tty ? master : in[1], from1 = r->tty ? master : out[0], from2 = r->tty ? -1 : err[0];
    if (!c) {
        count(0, *ends = 1);
        send_text(conn, '!', "%s", why);
        close(to), close(from1), close(from2);
        return 0;
    }
    fcntl(to, F_SETFL, O_NONBLOCK), fcntl(from1, F_SETFL, O_NONBLOCK);
    if (from2 >= 0) fcntl(from2, F_SETFL, O_NONBLOCK);
    char *buf = malloc(CHUNK_BYTES + 5), *pending = malloc(FRAME_BYTES_MAX);
    size_t pending_n = 0, pending_at = 0;
    int gone = !buf || !pending || send_text(conn, 'p', "%d", c->pid), eof_wanted = 0, in_open = 1;
    int64_t deadline = r->timeout_ms ? now_ms() + r->timeout_ms : 0;
    int timed_out = 0, exited = 0, told = 0;
    while (!gone && !exited) {
        int stdin_busy = pending_at < pending_n;
        struct pollfd p[5] = {
            {conn, stdin_busy ? 0 : POLLIN, 0},
            {from1, POLLIN, 0},
            {from2, POLLIN, 0},
            {in_open && stdin_busy ? to : -1, POLLOUT, 0},
            {c->event_fd, POLLIN, 0},
        };
        int wait = -1;
        if (deadline) wait = deadline > now_ms() ? (int)(deadline - now_ms()) : 0;
        int probe = stdin_busy && (wait < 0 || wait > STALL_PROBE_MS), ready = poll(p, 5, probe ? STALL_PROBE_MS : wait);
        if (!ready && probe) {
            if (!is_there(conn)) gone = 1;
            continue;
        }
        if (!ready && deadline && !timed_out) {
            timed_out = 1, deadline = now_ms() + KILL_GRACE_MS;
            kill_group(c->pid, SIGTERM);
            continue;
        }
        if (timed_out && now_ms() >= deadline) kill_group(c->pid, SIGKILL), deadline = now_ms() + KILL_GRACE_MS;
        if (from1 >= 0 && p[1].revents) {
            int k = forward_output(conn, from1, '1', buf);
            if (k < 0) gone = 1;
            if (k == 0 && !r->tty) close(from1), from1 = -1;
            else if (k == 0) sleep_ms(2); /* the terminal's last user left; its exit follows */
        }
        if (from2 >= 0 && p[2].revents) {
            int k = forward_output(conn, from2, '2', buf);
            if (k < 0) gone = 1;
            if (k == 0) close(from2), from2 = -1;
        }
        if (p[3].revents) {
            ssize_t k = write(to, pending + pending_at, pending_n - pending_at);
            if (k > 0) pending_at += (size_t)k;
            else if (k < 0 && errno != EAGAIN && errno != EINTR) pending_at = pending_n, in_open = 0;
        }
        if (p[0].revents) {
            char head[5];
            uint32_t n;
            if (read_all(conn, head, 5)) { gone = 1; continue; }
            memcpy(&n, head + 1, 4), n = ntohl(n);
            if (n >= FRAME_BYTES_MAX || read_all(conn, pending, n)) { gone = 1; continue; }
            pending[n] = 0, pending_n = pending_at = 0;
            struct winsize w = {0};
            switch (head[0]) {
            case '0': if (in_open) pending_n = n; break;
            case 'e': eof_wanted = 1; break;
            case 's': kill_group(c->pid, atoi(pending)); break;
            case 'w':
                if (r->tty && sscanf(pending, "%hu %hu", &w.ws_row, &w.ws_col) == 2) ioctl(master, TIOCSWINSZ, &w);
                break;
            }
        }
        if (eof_wanted && pending_at >= pending_n && in_open) {
            eof_wanted = 0;
            if (r->tty) (void)!write(to, "\x04", 1);
            else close(to), to = -1, in_open = 0;
        }
        if (p[4].revents) exited = 1;
    }
    if (exited) { /* what it wrote before it ended is in the pipes */
        int64_t until = now_ms() + KILL_GRACE_MS;
        for (int i = 0; i < 2 && !gone; i++) {
            int fd = i ? from2 : from1, k = 1;
            while (fd >= 0 && k == 1 && now_ms() < until) {
                struct pollfd p = {fd, POLLIN, 0};
                if (poll(&p, 1, 0) <= 0) break;
                k = forward_output(conn, fd, i ? '2' : '1', buf);
            }
            if (k < 0) gone = 1;
        }
        count(0, *ends = 1);
        told = !gone && !send_text(conn, 'x', "%d %d", exit_code(c->status), timed_out);
        if (timed_out) kill_group(c->pid, SIGKILL);
    } else {
        end_child(c, SIGHUP);
    }
    if (!r->tty && to >= 0) close(to);
    if (from1 >= 0) close(from1);
    if (from2 >= 0) close(from2);
    forget_child(c);
    free(buf), free(pending);
    return told;
}
