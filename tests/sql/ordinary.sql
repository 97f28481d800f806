SELECT 1
SELECT * FROM orders WHERE id = 1
SELECT o.id, o.total::numeric FROM orders o WHERE o.name LIKE 'x%' AND o.kind NOT ILIKE '%y' ORDER BY o.placed DESC
SELECT "Name" FROM shop."Orders" AS "o" ORDER BY "o"."Name" NULLS LAST LIMIT 10 OFFSET 5
SELECT count(*) FILTER (WHERE total > 1) OVER (PARTITION BY kind ORDER BY placed ROWS UNBOUNDED PRECEDING) FROM orders
SELECT kind, row_number() OVER w FROM orders WINDOW w AS (PARTITION BY kind ORDER BY id)
SELECT kind FROM orders GROUP BY (kind), name HAVING max(total) > ANY (ARRAY[1, 2]::int[]) AND NOT bool_or(id > 3)
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM orders
SELECT DISTINCT ON (kind) kind, name FROM orders ORDER BY kind, placed DESC
SELECT o.name, l.since FROM orders o LEFT JOIN late l ON o.id = l.id AND l.since BETWEEN now() - interval '1 day' AND now()
SELECT id FROM orders JOIN late USING (id) NATURAL JOIN accounts
SELECT * FROM orders o CROSS JOIN LATERAL (SELECT * FROM late l WHERE l.id = o.id LIMIT 1) x
SELECT CASE WHEN kind = 'x' THEN 'y' ELSE coalesce(name, 'z') END FROM orders
SELECT extract(epoch FROM placed - interval '1 day'), placed AT TIME ZONE 'UTC' FROM orders
SELECT substring(name FROM 1 FOR 2), overlay(name PLACING kind FROM 2), position('a' IN name) FROM orders
SELECT data ->> 'key', data @> '{}'::jsonb, data -> 'a' -> 0 FROM orders FOR UPDATE SKIP LOCKED
SELECT name, count(*) FROM orders WHERE kind IN ('a', 'b') AND placed IS NOT NULL GROUP BY name HAVING count(*) > 1
SELECT array_agg(name ORDER BY name DESC), string_agg(name, ', ') FROM orders WHERE tags && ARRAY['a']::text[]
SELECT (SELECT max(id) FROM late) AS newest, EXISTS (SELECT 1 FROM late WHERE id = 2), ARRAY(SELECT id FROM late)
SELECT * FROM unnest(ARRAY[1, 2], ARRAY['a', 'b']) WITH ORDINALITY
SELECT * FROM generate_series(1, 3) n, LATERAL (SELECT n + 1) m WHERE n IS DISTINCT FROM 2
SELECT id FROM orders UNION ALL SELECT id FROM late EXCEPT (SELECT id FROM accounts) ORDER BY 1 FETCH FIRST 5 ROWS ONLY
SELECT name FROM orders WHERE name SIMILAR TO 'a|b' OR name ~* '^a' OR (id, kind) IN ((1, 'a'), (2, 'b'))
SELECT row(1, 'a'), to_char(placed, 'YYYY'), date_trunc('day', placed), current_date, session_user FROM orders
SELECT jsonb_build_object('id', id, 'name', name), jsonb_array_elements(data -> 'list') FROM orders
SELECT greatest(1, 2), nullif(name, ''), lower(name) || upper(kind), abs(-1), round(total, 2) FROM orders
SELECT nextval('s'), pg_advisory_xact_lock(1), random(), gen_random_uuid()
SELECT 'it''s; SET x = 1 -- no comment', "name", n'x', b'101', x'1F', e'y' FROM orders
SELECT date '2020-01-01', timestamptz '2020-01-01', time '12:00', uuid '00000000-0000-0000-0000-000000000000'
WITH a AS MATERIALIZED (SELECT 1), b AS NOT MATERIALIZED (SELECT 2) SELECT * FROM a, b
WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT * FROM n
WITH gone AS (DELETE FROM late WHERE id < 0 RETURNING *) INSERT INTO orders (id, name) SELECT id, name FROM gone
WITH changed AS (UPDATE accounts SET balance = balance - 1 WHERE id = 1 RETURNING id) SELECT * FROM changed
WITH new AS (INSERT INTO late (id) VALUES (9) RETURNING id) UPDATE orders SET total = 0 FROM new WHERE orders.id = new.id
INSERT INTO orders (id, name, data) VALUES (1, 'x', '{}'), (2, DEFAULT, NULL) RETURNING id, name
INSERT INTO accounts (id, name) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET name = excluded.name WHERE accounts.id > 0
INSERT INTO accounts (id, name) SELECT id, name FROM orders ON CONFLICT ON CONSTRAINT accounts_pkey DO NOTHING
INSERT INTO shop."Orders" (id, "Name") SELECT 1, 'x' RETURNING id
INSERT INTO late DEFAULT VALUES
UPDATE orders SET total = total + 1, placed = now() WHERE id IN (SELECT id FROM late) RETURNING *
UPDATE ONLY accounts AS a SET balance = a.balance * 1.5, changed = DEFAULT FROM late WHERE a.id = late.id
UPDATE orders SET data = jsonb_set(data, '{a,b}', to_jsonb(name)), tags = array_append(tags, 'x') WHERE id = 1
DELETE FROM orders USING late WHERE orders.id = late.id AND placed < timestamp '2020-01-01' AT TIME ZONE 'UTC'
DELETE FROM ONLY late AS l WHERE l.since IS NULL OR l.id NOT BETWEEN 1 AND 3
VALUES (1, 'a'), (2, 'b')
BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY
START TRANSACTION READ WRITE
COMMIT AND NO CHAIN
ROLLBACK TO SAVEPOINT a
RELEASE SAVEPOINT a
SELECT id, total::numeric(10, 2), trim(BOTH 'x' FROM name) FROM orders
