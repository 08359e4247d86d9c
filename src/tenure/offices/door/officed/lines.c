/* Lines: our connections to the server, each an open socket of the host. While there is one, the office's memory cannot be
 * written to an image; so the server can ask us to drain: to let go of them all, and to dial none until it is back. */
#include "officed.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINES_MAX = SESSIONS_MAX + IDLE_CONNECTIONS };

static struct line {
    int fd, other; /* `other`: where a thread copies to, and may be waiting */
} lines[LINES_MAX];
static int lines_n, dialling, drained;
static unsigned drains;
static pthread_mutex_t lines_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t lines_changed;

void init_lines(void) { init_cond(&lines_changed); }

static struct line *find_line(int fd) {
    for (int i = 0; i < lines_n; i++)
        if (lines[i].fd == fd) return &lines[i];
    return NULL;
}

/* -1 also while drained, and for a connection that a drain has overtaken. */
int dial_server(const char *path) {
    pthread_mutex_lock(&lines_lock);
    unsigned before = drains;
    int fd = -1, may = !drained;
    dialling += may;
    pthread_mutex_unlock(&lines_lock);
    if (!may) return -1;
    fd = dial_unix(path);
    pthread_mutex_lock(&lines_lock);
    dialling--;
    if (fd >= 0 && (drains != before || lines_n == LINES_MAX)) close(fd), fd = -1;
    if (fd >= 0) lines[lines_n++] = (struct line){fd, -1};
    pthread_cond_broadcast(&lines_changed);
    pthread_mutex_unlock(&lines_lock);
    return fd;
}

/* What a drain shall end together with the line; -1 before `other` is closed. */
void pair_line(int fd, int other) {
    pthread_mutex_lock(&lines_lock);
    struct line *line = find_line(fd);
    if (line) line->other = other;
    pthread_mutex_unlock(&lines_lock);
}

void hang_up(int fd) {
    pthread_mutex_lock(&lines_lock);
    struct line *line = find_line(fd);
    if (line) *line = lines[--lines_n], close(fd);
    pthread_cond_broadcast(&lines_changed);
    pthread_mutex_unlock(&lines_lock);
}

/* Returns when the server may be dialled; whether that took waiting. */
int wait_while_drained(void) {
    pthread_mutex_lock(&lines_lock);
    int waited = drained;
    while (drained) pthread_cond_wait(&lines_changed, &lines_lock);
    pthread_mutex_unlock(&lines_lock);
    return waited;
}

static void set_drained(int on) {
    drained = on, drains += (unsigned)on;
    pthread_cond_broadcast(&lines_changed);
}

/* Ends every line but `kept`. 0 when none is left after a while, or when somebody else drains: then nothing changes. */
static int let_go(int kept) {
    pthread_mutex_lock(&lines_lock);
    int mine = !drained, done = 0;
    if (mine) set_drained(1);
    for (int i = 0; mine && i < lines_n; i++) {
        if (lines[i].fd == kept) continue;
        shutdown(lines[i].fd, SHUT_RDWR);
        if (lines[i].other >= 0) shutdown(lines[i].other, SHUT_RDWR);
    }
    for (int64_t until = now_ms() + DRAIN_MS; mine && !(done = lines_n == 1 && !dialling) && now_ms() < until;)
        wait_cond(&lines_changed, &lines_lock, until - now_ms());
    if (mine && !done) set_drained(0);
    pthread_mutex_unlock(&lines_lock);
    return done ? 0 : -1;
}

/* Answers d with "drained" and lets go of all lines but `conn`, which the caller hangs up (1); or with "refused" and a line
 * for each reason, changing nothing (0 or -1, as all answers do). */
int drain(int conn) {
    char *report = malloc(FRAME_BYTES_MAX);
    if (!report) return -1;
    size_t head = (size_t)snprintf(report, FRAME_BYTES_MAX, "refused\n"), n = head, room = FRAME_BYTES_MAX;
    n += list_attached(report + n, room - n);
    n += list_jobs(report + n, room - n);
    n += list_obstacles(report + n, room - n);
    int answered = n > head ? send_frame(conn, 'd', report, (uint32_t)n)
                 : let_go(conn) ? send_text(conn, '!', "busy: a connection of the office does not end")
                                : (send_text(conn, 'd', "drained\n"), 1);
    free(report);
    return answered;
}

/* After a drain: the server shows that it is back (with all processes restored, or having changed its mind) by its socket. */
void wait_for_server(void) {
    int64_t soon = now_ms() + DRAINED_POLL_MS;
    while (access(door_path, F_OK)) sleep_ms(now_ms() < soon ? DRAINED_REDIAL_MS : REDIAL_MS_MAX);
    pthread_mutex_lock(&lines_lock);
    set_drained(0);
    pthread_mutex_unlock(&lines_lock);
}
